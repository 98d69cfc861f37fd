"""Who may do what over HTTP: keys, scopes, owners, rates, and what never reaches a log."""

import pytest

from broker import keys
from gateway.app import create_app
from gateway.http.authentication import keys_are_required
from schemas.owners import Owner, Scope
from schemas.policy import Tier
from tests.samples import a_result
from tests.taking import take_one

PROMPT = {"prompt": "why is the sky blue"}


@pytest.fixture
def make_client(make_services, redis_connection):
    def make(**gateway: object):
        services = make_services(require_api_keys=True, **gateway)
        return create_app(services, redis_connection.connection_pool).test_client()

    return make


@pytest.fixture
def client(make_client):
    return make_client()


# Keys


@pytest.mark.parametrize(
    ("host", "required", "expected"),
    [
        ("127.0.0.1", False, False),
        ("127.8.9.1", False, False),
        ("::1", False, False),
        ("localhost", False, False),
        ("0.0.0.0", False, True),
        ("::", False, True),
        ("10.0.0.5", False, True),
        ("gateway.example", False, True),
        ("127.0.0.1", True, True),
    ],
)
def test_keys_are_required_as_soon_as_others_can_reach_the_gateway(settings, host, required, expected):
    changed = settings.gateway.model_copy(update={"host": host, "require_api_keys": required})
    assert keys_are_required(changed) == expected


def test_without_a_known_key_nothing_is_answered(client):
    foreign = ("", "Bearer", "Bearer sk-someone-elses", "Bearer fd_", "Bearer fd_000000000000_guess", "Basic Zm9vOmI=")
    for authorization in foreign:
        for method, path in (("GET", "/v1/jobs/x"), ("POST", "/v1/jobs"), ("DELETE", "/v1/jobs/x")):
            answer = client.open(path, method=method, headers={"Authorization": authorization}, json=PROMPT)
            assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
            assert answer.content_type == "application/problem+json"


def test_every_route_but_health_and_the_document_needs_a_key(client):
    paths = client.get("/openapi/openapi.json").json["paths"]
    open_to_all = set()
    for path, operations in paths.items():
        for method in operations:
            answer = client.open(path.replace("{", "").replace("}", ""), method=method.upper(), json={})
            if answer.status_code != 401:
                open_to_all.add(path)
    assert open_to_all == {"/healthz", "/readyz"}


def test_an_openai_route_says_so_in_openais_form(client):
    answer = client.post("/v1/chat/completions", json={})
    assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert answer.json["error"]["message"]


def test_a_key_with_one_letter_changed_is_unknown(client, headers):
    good = headers("alice")["Authorization"]
    last = "A" if good[-1] != "A" else "B"
    assert client.get("/v1/jobs/x", headers={"Authorization": good}).status_code == 404
    assert client.get("/v1/jobs/x", headers={"Authorization": good[:-1] + last}).status_code == 401


def test_a_revoked_key_is_worthless_at_once(client, headers, api_keys):
    header = headers("alice")
    assert client.get("/v1/jobs/x", headers=header).status_code == 404
    (kept,) = api_keys.listed()
    assert api_keys.revoke(kept.key_id)
    assert not api_keys.revoke(kept.key_id)
    assert client.get("/v1/jobs/x", headers=header).status_code == 401


def test_only_a_hash_of_the_key_is_stored(api_keys, redis_connection):
    key = api_keys.create(Owner(name="alice"))
    secret = key.split("_", 2)[2]
    stored = b"".join(redis_connection.hvals(keys.api_keys()))
    assert secret.encode() not in stored
    assert api_keys.find(key).owner.name == "alice"


def test_a_scope_is_good_for_what_it_names(client, headers):
    for scopes, allowed in (
        ((Scope.SUBMIT,), {"submit"}),
        ((Scope.READ,), {"read"}),
        ((Scope.ADMIN,), {"submit", "read", "stats", "caches"}),
        ((Scope.SUBMIT, Scope.READ), {"submit", "read"}),
    ):
        header = headers("alice", *scopes)
        done = {
            "submit": client.post("/v1/jobs", json=PROMPT, headers=header),
            "read": client.get("/v1/jobs/x", headers=header),
            "stats": client.get("/v1/stats", headers=header),
            "caches": client.get("/v1/cache/stats", headers=header),
        }
        assert {name for name, answer in done.items() if answer.status_code != 403} == allowed


def test_on_the_loopback_a_foreign_key_is_ignored_and_a_false_one_of_ours_is_not(make_services):
    client = create_app(make_services()).test_client()
    assert client.get("/v1/stats").status_code == 200
    assert client.get("/v1/stats", headers={"Authorization": "Bearer sk-anything"}).status_code == 200
    assert client.get("/v1/stats", headers={"Authorization": "Bearer fd_anything_else"}).status_code == 401


# Owners


def test_a_job_is_there_for_its_owner_and_the_admin_and_for_nobody_else(client, store, headers):
    alice, other_key, bob = headers("alice"), headers("alice"), headers("bob")
    admin = headers("root", Scope.ADMIN)
    job = client.post("/v1/jobs", json=PROMPT, headers=alice).json["id"]
    assert store.read(job).owner == "alice"
    for address in (f"/v1/jobs/{job}", f"/v1/jobs/{job}?wait=0.1"):
        told = [client.get(address, headers=header).status_code for header in (alice, other_key, bob, admin)]
        assert told == [200, 200, 404, 200]
    assert client.get(f"/v1/jobs/{job}/events", headers=bob).status_code == 404
    assert client.delete(f"/v1/jobs/{job}", headers=bob).status_code == 404
    assert store.state(job) == "queued"
    not_mine, nowhere = (client.get(f"/v1/jobs/{name}", headers=bob).json for name in (job, "0" * 32))
    assert not_mine["detail"].replace(job, "") == nowhere["detail"].replace("0" * 32, "")
    assert client.delete(f"/v1/jobs/{job}", headers=alice).json["status"] == "cancelled"


def test_what_is_gone_is_gone_for_its_owner_and_never_was_for_others(client, store, headers, redis_connection):
    alice, bob = headers("alice"), headers("bob")
    job = client.post("/v1/jobs", json=PROMPT, headers=alice).json["id"]
    store.succeed(take_one(store, Tier.EDGE, "w1").lease, a_result(), [])
    redis_connection.delete(keys.request(job), keys.events(job))
    assert client.get(f"/v1/jobs/{job}", headers=alice).status_code == 410
    assert client.get(f"/v1/jobs/{job}", headers=bob).status_code == 404


def test_an_idempotency_key_is_its_owners_own(client, headers):
    ids = {
        client.post("/v1/jobs", json=PROMPT, headers=headers(owner) | {"Idempotency-Key": "7"}).json["id"]
        for owner in ("alice", "alice", "bob")
    }
    assert len(ids) == 2


# Rates


def test_a_key_that_comes_too_often_is_told_when_to_come_again_and_others_are_not(make_client, headers):
    client = make_client(rate_limit="3/minute")
    often, seldom = headers("often"), headers("seldom")
    told = [client.get("/v1/jobs/x", headers=often) for _ in range(4)]
    assert [answer.status_code for answer in told] == [404, 404, 404, 429]
    assert 0 < int(told[-1].headers["Retry-After"]) <= 60
    assert told[-1].content_type == "application/problem+json"
    assert client.get("/v1/jobs/x", headers=seldom).status_code == 404
    assert client.get("/healthz").status_code == 200


def test_counts_of_rates_are_under_our_prefix_and_go_by_themselves(make_client, headers, redis_connection):
    make_client().get("/v1/jobs/x", headers=headers("alice"))
    counts = list(redis_connection.scan_iter(f"{keys.rate_limits()}*"))
    assert counts
    assert all(redis_connection.ttl(name) > 0 for name in counts)
    assert all(name.startswith(b"firstdraft:") for name in redis_connection.scan_iter("*") if b"LIMIT" in name)
