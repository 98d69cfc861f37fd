"""What the HTTP API promises about durability: safe repetition, room, deadlines, what is gone, the disk."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from broker import keys
from broker.leases import Lifetimes
from broker.request_store import NotOnDisk, RequestStore
from gateway.app import create_app
from schemas.policy import Tier
from tests.samples import a_request, a_result
from tests.taking import take_one

PROMPT = {"prompt": "why is the sky blue", "max_tokens": 100}
JSON = {"Content-Type": "application/json"}
KEY = {"Idempotency-Key": "order-7"}


@pytest.fixture
def make_client(make_services):
    return lambda *arguments, **backpressure: create_app(
        make_services(*arguments, backpressure=backpressure)
    ).test_client()


@pytest.fixture
def client(make_client):
    return make_client()


def test_a_repeated_submission_is_the_same_job(client, store):
    first, second = (client.post("/v1/jobs", json=PROMPT, headers=KEY) for _ in range(2))
    assert (first.status_code, second.status_code) == (202, 202)
    assert first.json["id"] == second.json["id"]
    assert "Idempotency-Replayed" not in first.headers
    assert second.headers["Idempotency-Replayed"] == "true"
    assert store.counters()["accepted"] == 1


def test_a_repeated_submission_tells_how_the_job_is_now(client, store):
    client.post("/v1/jobs", json=PROMPT, headers=KEY)
    store.succeed(take_one(store, Tier.EDGE, "w1").lease, a_result(), [])
    assert client.post("/v1/jobs", json=PROMPT, headers=KEY).json["status"] == "succeeded"


def test_the_spelling_of_a_body_does_not_matter_but_its_meaning_does(client):
    first = client.post("/v1/jobs", json=PROMPT, headers=KEY)
    spelt = client.post("/v1/jobs", data='{"max_tokens":100,  "prompt":"why is the sky blue"}', headers=KEY | JSON)
    assert spelt.json["id"] == first.json["id"]
    other = client.post("/v1/jobs", json=PROMPT | {"max_tokens": 101}, headers=KEY)
    assert (other.status_code, other.json["title"]) == (422, "The Idempotency-Key stands for another body")


@pytest.mark.parametrize("key", ["", "x" * 256])
def test_a_key_that_is_none_is_refused(client, key):
    assert client.post("/v1/jobs", json=PROMPT, headers={"Idempotency-Key": key}).status_code == 422


def test_a_result_that_has_expired_is_gone_and_what_never_was_is_not_found(client, store, redis_connection):
    job = client.post("/v1/jobs", json=PROMPT).json["id"]
    store.succeed(take_one(store, Tier.EDGE, "w1").lease, a_result(), [])
    redis_connection.delete(keys.request(job), keys.events(job))
    for address in (f"/v1/jobs/{job}", f"/v1/jobs/{job}/events"):
        assert client.get(address).status_code == 410
        assert client.get(address.replace(job, "nobody")).status_code == 404
    assert client.delete(f"/v1/jobs/{job}").status_code == 410


@pytest.mark.parametrize(
    ("limits", "status"),
    [
        ({"owner_max_requests": 2}, 429),
        ({"owner_max_tokens": 250}, 429),
        ({"max_requests": 2}, 503),
        ({"max_tokens": 250}, 503),
    ],
)
def test_above_a_limit_nothing_is_accepted_until_there_is_room(make_client, store, limits, status):
    client = make_client(**limits)
    for _ in range(2):
        client.post("/v1/jobs", json=PROMPT)
    refused = client.post("/v1/jobs", json=PROMPT)
    assert (refused.status_code, refused.headers["Retry-After"]) == (status, "60")
    assert next(iter(limits)) in refused.json["detail"]
    assert store.counters()["accepted"] == 2
    store.succeed(take_one(store, Tier.EDGE, "w1").lease, a_result(), [])
    assert client.post("/v1/jobs", json=PROMPT).status_code == 202
    again = client.post("/v1/jobs", json=PROMPT)
    assert again.status_code == status
    assert 1 <= int(again.headers["Retry-After"]) < 60, "one has just finished, so it drains"


def test_a_quarantined_prompt_is_refused_and_names_its_job(client, store):
    job = client.post("/v1/jobs", json=PROMPT).json["id"]
    for place in range(3):
        store.surrender(take_one(store, Tier.EDGE, f"w{place}").lease, "its engine died")
    failure = client.get(f"/v1/jobs/{job}").json["failure"]
    assert [lost["reason"] for lost in failure["attempts"]] == ["its engine died"] * 3
    refused = client.post("/v1/jobs", json=PROMPT | {"policy": "edge_only"})
    assert refused.status_code == 422
    assert "quarantined" in refused.json["detail"]
    assert job in refused.json["detail"]
    assert client.post("/v1/jobs", json={"prompt": "another"}).status_code == 202


def test_a_deadline_beyond_the_longest_is_refused(client, settings, store):
    longest = settings.requests.deadline_s
    job = client.post("/v1/jobs", json=PROMPT | {"deadline_s": 5}).json["id"]
    assert store.read(job).request.deadline_s == 5
    refused = client.post("/v1/jobs", json=PROMPT | {"deadline_s": longest + 1})
    assert refused.json["errors"][0]["field"] == "deadline_s"


def test_a_prompt_beyond_the_longest_is_refused_without_being_repeated(client, settings):
    prompt = "secret " * settings.requests.max_prompt_bytes
    refused = client.post("/v1/jobs", json={"prompt": prompt[: settings.requests.max_prompt_bytes + 1]})
    assert refused.status_code == 422
    assert "secret" not in refused.text


@pytest.fixture
def at_once():
    """What several calls answer that are made at one moment."""

    def call(*calls):
        start = threading.Barrier(len(calls))

        def one(ask):
            start.wait(10)
            return ask()

        with ThreadPoolExecutor(len(calls)) as pool:
            return list(pool.map(one, calls))

    return call


def test_a_key_that_comes_many_times_at_once_is_one_job(make_client, store, at_once):
    client = make_client()
    told = at_once(*[lambda: client.application.test_client().post("/v1/jobs", json=PROMPT, headers=KEY)] * 8)
    assert {answer.status_code for answer in told} == {202}
    assert len({answer.json["id"] for answer in told}) == 1
    assert [answer.headers.get("Idempotency-Replayed") for answer in told].count(None) == 1
    assert store.counters()["accepted"] == 1
    job = told[0].json["id"]
    assert take_one(store, Tier.EDGE, "w1").lease.request_id == job


def test_of_two_bodies_that_come_at_once_under_one_key_one_is_the_job_and_the_other_refused(
    make_client, store, at_once
):
    client = make_client()

    def ask(max_tokens):
        body = PROMPT | {"max_tokens": max_tokens}
        return lambda: client.application.test_client().post("/v1/jobs", json=body, headers=KEY)

    told = at_once(*[ask(max_tokens) for max_tokens in (1, 2) * 4])
    assert sorted(answer.status_code for answer in told) == [202] * 4 + [422] * 4
    assert len({answer.json["id"] for answer in told if answer.status_code == 202}) == 1
    assert store.counters()["accepted"] == 1


def test_a_job_that_is_cancelled_many_times_at_once_is_cancelled_once(make_client, store, at_once):
    client = make_client()
    job = client.post("/v1/jobs", json=PROMPT).json["id"]
    assert take_one(store, Tier.EDGE, "w1")
    told = at_once(*[lambda: client.application.test_client().delete(f"/v1/jobs/{job}")] * 8)
    assert {(answer.status_code, answer.json["status"]) for answer in told} == {(200, "cancelled")}
    assert store.counters()["cancelled"] == 1


@pytest.fixture
def durable(redis_connection):
    """A store that waits for the disk."""
    return RequestStore(redis_connection, Lifetimes(60, 10.0, 3), fsync=True)


@pytest.fixture
def disk(redis_connection):
    """Stops the disk from taking anything: at once, or so that the wait for it lasts until its end."""
    settings = {"refuses": {"appendonly": "no"}, "hangs": {"appendfsync": "no"}}
    before = redis_connection.config_get("append*")

    @contextmanager
    def fails(how):
        for name, value in settings[how].items():
            redis_connection.config_set(name, value)
        try:
            yield
        finally:
            for name in settings[how]:
                redis_connection.config_set(name, before[name])

    return fails


def test_with_fsync_a_job_is_accepted_once_it_is_on_disk(make_client, durable):
    assert make_client(durable).post("/v1/jobs", json=PROMPT).status_code == 202
    assert durable.counters()["fsynced"] == 1


@pytest.mark.parametrize("how", ["refuses", "hangs"])
def test_with_fsync_a_job_that_does_not_reach_the_disk_is_taken_back_whole(
    make_client, durable, redis_connection, disk, how
):
    client = make_client(durable)
    with disk(how):
        answer = client.post("/v1/jobs", json=PROMPT, headers=KEY)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert "disk" in answer.json["title"]
    assert durable.counters()["cancelled"] == 1
    assert redis_connection.exists(keys.due(), keys.line("edge")) == 0
    again = client.post("/v1/jobs", json=PROMPT, headers=KEY)
    assert (again.status_code, again.json["status"]) == (202, "queued")
    assert "Idempotency-Replayed" not in again.headers


def test_with_fsync_what_was_accepted_earlier_is_not_taken_back_when_it_comes_again(durable, disk):
    request = a_request()
    durable.create(request)
    with disk("refuses"), pytest.raises(NotOnDisk):
        durable.create_all([(request, None), (a_request(), None)])
    assert durable.state(request.request_id) == "queued"
    assert durable.counters()["cancelled"] == 1


def test_with_fsync_a_repetition_waits_for_the_disk_too_and_leaves_the_job_alone(make_client, durable, disk):
    client = make_client(durable)
    job = client.post("/v1/jobs", json=PROMPT, headers=KEY).json["id"]
    with disk("refuses"):
        assert client.post("/v1/jobs", json=PROMPT, headers=KEY).status_code == 503
    assert durable.state(job) == "queued"
    assert client.post("/v1/jobs", json=PROMPT, headers=KEY).json["id"] == job
