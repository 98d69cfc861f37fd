"""Records that were damaged, or written by another version: said so, counted against nobody else, and never lost."""

from contextlib import suppress

import msgpack
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from broker import keys
from broker.event_streams import EventHub
from broker.idempotency import Idempotency, IdempotencyConflict
from broker.presence import Presence
from broker.states import State
from gateway.app import create_app
from schemas.policy import Tier
from schemas.results import FailureKind
from schemas.wire import UndecodableMessage
from tests.samples import a_draft, a_request, a_result, a_worker_report
from tests.taking import take_one

FIELDS = [
    "owner",
    "state",
    "attempt",
    "request",
    "draft",
    "result",
    "failure",
    "route_edge",
    "lost",
    "deadline_at",
    "worker",
]
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
BYTES = st.binary() | PLAIN.map(msgpack.packb) | st.integers().map(lambda number: str(number).encode())


@pytest.fixture
def damaged(store, redis_connection):
    """A request that waits, with one field of its record overwritten."""

    def make(field: str = "request", value: bytes = b"\xc1") -> str:
        request = a_request()
        store.create(request)
        redis_connection.hset(keys.request(request.request_id), field, value)
        return request.request_id

    return make


@given(field=st.sampled_from(FIELDS), value=BYTES)
@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_in_a_field_the_record_is_read_or_undecodable(store, damaged, redis_connection, field, value):
    redis_connection.flushall()
    request_id = damaged(field, value)
    for read in (store.read, store.state):
        with suppress(UndecodableMessage):
            read(request_id)


@given(field=st.sampled_from(FIELDS), value=BYTES)
@example(field="attempt", value=b"18446744073709551616")
@example(field="attempt", value=b"-9223372036854775809")
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_in_a_field_all_others_are_looked_after(store, redis_connection, field, value):
    redis_connection.flushall()
    broken, whole = (a_request().model_copy(update={"request_id": name}) for name in ("a-broken", "b-whole"))
    for request in (broken, whole):
        store.create(request)
        assert take_one(store, Tier.EDGE, "w1")
        redis_connection.zadd(keys.due(), {request.request_id: 1.0})
    redis_connection.hset(keys.request(broken.request_id), field, value)
    assert whole.request_id in store.expire()
    redis_connection.zadd(keys.due(), {broken.request_id: 1.0}, xx=True)
    store.expire()
    state = redis_connection.hget(keys.request(broken.request_id), "state")
    assert state in {b"queued", b"failed"}, "whatever is damaged, it waits again or ends"


@given(fields=st.dictionaries(st.just(b"event") | st.binary(max_size=5), BYTES, min_size=1, max_size=2))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_in_a_stream_it_is_an_event_or_undecodable(redis_connection, fields):
    redis_connection.flushall()
    redis_connection.xadd(keys.events("r1"), fields)
    hub = EventHub(redis_connection)
    for read in (lambda: hub.read("r1"), lambda: hub.endings(["r1"])):
        with suppress(UndecodableMessage):
            read()


@given(meaning=st.binary())
def test_whatever_an_idempotency_key_stands_for_it_is_a_request_or_a_conflict(meaning):
    try:
        earlier = Idempotency("someone", "7", "digest").earlier(meaning)
    except IdempotencyConflict:
        return
    assert meaning == f"digest {earlier}".encode()


def test_the_gateway_says_that_it_cannot_read_a_job_and_goes_on(make_services, damaged):
    client = create_app(make_services()).test_client()
    job = damaged()
    for address in (f"/v1/jobs/{job}", f"/v1/jobs/{job}?wait=0.01"):
        answer = client.get(address)
        assert (answer.status_code, answer.content_type) == (500, "application/problem+json")
        assert "cannot be read" in answer.json["title"]
    assert client.delete(f"/v1/jobs/{job}").status_code == 500
    assert client.post("/v1/jobs", json={"prompt": "x"}).status_code == 202


def test_a_request_that_no_worker_can_read_fails_with_its_history_and_quarantines_nothing(
    store, damaged, redis_connection
):
    request_id = damaged()
    for attempt in range(1, 4):
        assert take_one(store, Tier.EDGE, f"w{attempt}") is None
    assert store.state(request_id) == State.FAILED
    (ending,) = EventHub(redis_connection).endings([request_id]).values()
    assert ending.failure.kind == FailureKind.ATTEMPTS_EXHAUSTED
    assert all("could not be read" in lost.reason for lost in ending.failure.attempts)
    assert list(redis_connection.scan_iter(keys.quarantine("*", "*"))) == []


def test_a_draft_that_the_cloud_cannot_read_does_not_hold_up_the_next_request(store, redis_connection):
    first, second = a_request(), a_request()
    for request in (first, second):
        store.create(request)
        assert store.escalate(take_one(store, Tier.EDGE, "e1").lease, a_draft(), [])
    redis_connection.hset(keys.request(first.request_id), "draft", b"\x80\x04")
    for _ in range(3):  # each of which is an attempt of the first that is lost
        assert take_one(store, Tier.CLOUD, "c1") is None
    assert store.state(first.request_id) == State.FAILED
    taken = take_one(store, Tier.CLOUD, "c1")
    assert store.succeed(taken.lease, a_result(tier=Tier.CLOUD), [])


def test_a_key_of_another_type_in_place_of_a_record_stops_nobody(store, redis_connection):
    broken, whole = a_request(), a_request()
    for request in (broken, whole):
        store.create(request)
    redis_connection.delete(keys.request(broken.request_id))
    redis_connection.set(keys.request(broken.request_id), "x")
    assert [one.lease.request_id for one in store.take(Tier.EDGE, "w1", room=2).requests] == [whole.request_id]
    redis_connection.zadd(keys.due(), dict.fromkeys([broken.request_id, whole.request_id], 1.0))
    assert store.expire() == [whole.request_id]


def test_a_request_and_its_history_that_cannot_be_read_end_it_and_cost_no_other_an_attempt(store, redis_connection):
    broken, whole = a_request(), a_request()
    for request in (broken, whole):
        store.create(request)
    redis_connection.hset(keys.request(broken.request_id), mapping={"request": b"\xc1", "lost": b"\xc1"})
    assert [one.lease.request_id for one in store.take(Tier.EDGE, "w1", room=2).requests] == [whole.request_id]
    assert store.state(broken.request_id) == State.FAILED


def test_a_report_of_another_version_hides_no_other(redis_connection):
    presence = Presence(redis_connection, 10.0)
    for name in ("w1", "w2"):
        presence.renew(a_worker_report(name))
    redis_connection.set(keys.worker_report("w1@e1"), b"\xc1")
    assert presence.live() == [a_worker_report("w2")]
