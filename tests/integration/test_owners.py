"""Whose things are: every route that the application has is in one of the tables here, so that none is forgotten."""

import io
from dataclasses import replace

import pytest

from broker.prefix_index import PrefixIndex
from gateway.app import create_app
from gateway.monitoring.prefix_lookup import PrefixLookup
from schemas.owners import Scope

LINE = b'{"custom_id": "1", "method": "POST", "url": "/v1/jobs", "body": {"prompt": "x"}}'
PROMPT = {"prompt": "why is the sky blue"}
#: Routes to one thing of an owner's: another's key finds nothing there.
OWNED = {
    ("GET", "/v1/jobs/<job_id>"),
    ("GET", "/v1/jobs/<job_id>/events"),
    ("DELETE", "/v1/jobs/<job_id>"),
    ("GET", "/v1/responses/<response_id>"),
    ("GET", "/v1/responses/<response_id>/input_items"),
    ("POST", "/v1/responses/<response_id>/cancel"),
    ("DELETE", "/v1/responses/<response_id>"),
    ("GET", "/v1/files/<file_id>"),
    ("GET", "/v1/files/<file_id>/content"),
    ("DELETE", "/v1/files/<file_id>"),
    ("GET", "/v1/batches/<batch_id>"),
    ("POST", "/v1/batches/<batch_id>/cancel"),
}
#: Lists of an owner's things.
LISTS = {("GET", "/v1/files"), ("GET", "/v1/batches")}
#: What makes a new thing. Where it names another thing, that must be one's own (tested below).
SUBMITTING = {
    ("POST", "/v1/jobs"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/responses"),
    ("POST", "/v1/files"),
    ("POST", "/v1/batches"),
}
#: What is about the system, for admins.
ADMINS = {("GET", "/v1/stats"), ("GET", "/v1/cache/stats"), ("POST", "/v1/cache/holders")}
#: What is the same for everybody, and the WebSocket, which has tests of its own (test_websocket.py).
EVERYBODYS = {
    ("GET", "/v1/models"),
    ("GET", "/v1/models/<path:model>"),
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("GET", "/v1/ws"),
}
#: flask-openapi3's pages and Flask's own folder of files, which is empty.
PAGES = ("/openapi", "/static")


@pytest.fixture
def app(make_services, redis_connection):
    services = make_services(require_api_keys=True)
    prefix_lookup = PrefixLookup(PrefixIndex(redis_connection, 60), services.presence, block_bytes=64)
    return create_app(replace(services, prefix_lookup=prefix_lookup), redis_connection.connection_pool)


@pytest.fixture
def client(app):
    return app.test_client()


@pytest.fixture
def things(client, headers):
    """Alice's key, and the ids of one thing of each kind that is hers, by the name of its part in addresses."""
    alice = headers("alice")
    background = {"model": "firstdraft", "input": "hello", "background": True}
    upload = {"purpose": "batch", "file": (io.BytesIO(LINE), "lines.jsonl")}
    ids = {
        "job_id": client.post("/v1/jobs", json=PROMPT, headers=alice).json["id"],
        "response_id": client.post("/v1/responses", json=background, headers=alice).json["id"],
        "file_id": client.post("/v1/files", data=upload, headers=alice).json["id"],
    }
    batch = {"input_file_id": ids["file_id"], "endpoint": "/v1/jobs", "completion_window": "24h"}
    ids["batch_id"] = client.post("/v1/batches", json=batch, headers=alice).json["id"]
    return alice, ids


def address(rule: str, ids: dict[str, str]) -> str:
    for name, value in ids.items():
        rule = rule.replace(f"<{name}>", value)
    return rule


def test_every_route_is_in_a_table(app):
    routes = {
        (method, rule.rule)
        for rule in app.url_map.iter_rules()
        for method in rule.methods - {"HEAD", "OPTIONS"}
        if not rule.rule.startswith(PAGES)
    }
    assert routes == OWNED | LISTS | SUBMITTING | ADMINS | EVERYBODYS


@pytest.mark.parametrize(("method", "rule"), sorted(OWNED))
def test_a_thing_is_there_for_its_owner_and_not_there_for_another(client, things, headers, method, rule):
    alice, ids = things
    bob, admin = headers("bob"), headers("root", Scope.ADMIN)
    hers, nowhere = address(rule, ids), address(rule, dict.fromkeys(ids, "0" * 32))
    told, unknown = (client.open(where, method=method, headers=bob) for where in (hers, nowhere))
    assert (told.status_code, unknown.status_code) == (404, 404)
    told_text = told.text
    for name in ids.values():
        told_text = told_text.replace(name, "0" * 32)
    assert told_text == unknown.text
    if method == "GET":
        assert client.head(hers, headers=bob).status_code == 404
        assert client.get(f"{hers}?stream=true&wait=0.01", headers=bob).status_code == 404
        assert client.get(hers, headers=admin).status_code == 200
    assert client.open(hers, method=method, headers=alice).status_code == 200


def test_what_another_tried_to_change_is_as_it_was(client, things, headers):
    alice, ids = things
    bob = headers("bob")
    reads = [rule for method, rule in sorted(OWNED) if method == "GET" and not rule.endswith("/events")]
    before = [client.get(address(rule, ids), headers=alice).data for rule in reads]
    for method, rule in sorted(OWNED):
        assert client.open(address(rule, ids), method=method, headers=bob).status_code == 404
    assert [client.get(address(rule, ids), headers=alice).data for rule in reads] == before


@pytest.mark.parametrize(("method", "rule"), sorted(LISTS))
def test_a_list_holds_ones_own(client, things, headers, method, rule):
    alice, _ = things
    listed = [len(client.open(rule, method=method, headers=header).json["data"]) for header in (alice, headers("bob"))]
    assert listed == [1, 0]


@pytest.mark.parametrize(
    ("rule", "body", "named"),
    [
        ("/v1/batches", {"endpoint": "/v1/jobs", "completion_window": "24h"}, {"input_file_id": "file_id"}),
        ("/v1/responses", {"model": "firstdraft", "input": "and?"}, {"previous_response_id": "response_id"}),
    ],
)
def test_a_new_thing_cannot_name_anothers(client, things, headers, rule, body, named):
    _, ids = things
    ((field, kind),) = named.items()
    assert client.post(rule, json=body | {field: ids[kind]}, headers=headers("bob")).status_code == 404


@pytest.mark.parametrize(("method", "rule"), sorted(ADMINS))
def test_what_is_about_the_system_is_for_admins(client, headers, method, rule):
    told = {
        name: client.open(rule, method=method, json=PROMPT if method == "POST" else None, headers=header).status_code
        for name, header in (("bob", headers("bob")), ("root", headers("root", Scope.ADMIN)))
    }
    assert told == {"bob": 403, "root": 200}
