"""Whatever is said over a WebSocket, it is answered, and the conversation goes on. The frames are left out."""

import json
from collections import deque

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker import keys
from gateway.websocket.connection import Gone
from gateway.websocket.session import Session
from schemas.sockets import EventMessage, JobMessage, ProblemMessage
from tests.polling import until

TEXT = st.text() | st.just("\ud800") | st.just("x\udc00")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
KINDS = st.sampled_from(["submit", "follow", "cancel"]) | JSON
BODIES = st.fixed_dictionaries(
    {"prompt": TEXT}, optional={"temperature": JSON, "json_schema": JSON, "policy": JSON, "webhook": JSON}
)
MESSAGES = st.fixed_dictionaries(
    {"type": KINDS}, optional={"ref": JSON, "body": BODIES | JSON, "job_id": JSON | TEXT, "after": JSON | TEXT}
)
#: What JSON parsers are weak at.
NASTY = [
    '{"ref": "\\ud800"}',
    '{"type": "\\ud800", "ref": 7}',
    '{"type": "cancel", "job_id": "\\udfff", "ref": "\\ud800"}',
    '{"type": "follow", "job_id": "x", "after": "\u0663-\u0663"}',
    f'{{"ref": {"[" * 900}{"]" * 900}}}',
    "[" * 100_000,
    f'{{"ref": {"9" * 5000}}}',
    f'{{"ref": {"9" * 400}}}',
    '{"ref": NaN, "type": "submit", "body": {"prompt": "x", "temperature": NaN}}',
    '{"type": "cancel", "job_id": "\\u0000", "ref": 1}',
    '{"type": "cancel", "job_id": "x", "ref": 1, "ref": {"a": "\\ud800"}}',
    "\ufffd",
    "",
]


class Said:
    """A connection whose other side says these messages and leaves; what it is told is kept."""

    def __init__(self, *messages: str) -> None:
        self.told: list[str] = []
        self._messages = deque(messages)

    def receive(self) -> str:
        if not self._messages:
            raise Gone("has said everything")
        return self._messages.popleft()

    def send(self, text: str) -> None:
        self.told.append(text)

    def close(self) -> None:
        """There is nothing to close."""


@pytest.fixture
def answers(make_services):
    """What each of the messages is answered with; events are left out."""
    services = make_services()

    def say(*messages: str) -> list[dict]:
        connection = Said(*messages)
        with services.hub.subscribe() as subscription:
            Session(services, connection, subscription).run()
        return [told for told in map(json.loads, connection.told) if told["type"] != "event"]

    return say


def check(told: dict) -> None:
    kind = {"job": JobMessage, "problem": ProblemMessage, "event": EventMessage}[told["type"]]
    assert kind.model_validate_json(json.dumps(told))


@pytest.mark.parametrize("message", NASTY)
def test_what_json_parsers_are_weak_at_is_answered_with_a_problem(answers, message):
    told = answers(message, '{"type": "cancel", "ref": 8, "job_id": "nobody"}')
    assert [(one["type"], one["problem"]["status"]) for one in told][1] == ("problem", 404)
    assert told[0]["problem"]["status"] in {404, 422}
    check(told[0])


@given(raw=st.text() | JSON.map(json.dumps) | MESSAGES.map(json.dumps))
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_said_is_answered_once(answers, raw):
    told = answers(raw, '{"type": "cancel", "ref": 8, "job_id": "nobody"}')
    assert len(told) == 2
    check(told[0])
    assert told[1]["ref"] == 8


def test_a_ref_comes_back_with_a_problem_if_it_is_one(answers):
    refs = ["a", 7, None, [1], {"a": 1}, 1.5]
    told = answers(*(json.dumps({"type": "dance", "ref": ref}) for ref in refs))
    assert [one["ref"] for one in told] == ["a", 7, None, None, None, None]


def test_a_job_whose_events_cannot_be_read_is_told_of(make_services, redis_connection):
    services = make_services()
    submit = '{"type": "submit", "body": {"prompt": "x"}}'

    class Waiting(Said):
        """Damages the job's stream, and leaves when it was told of it."""

        def receive(self) -> str:
            if self._messages:
                return super().receive()
            (job,) = {told["job"]["id"] for told in map(json.loads, self.told) if told["type"] == "job"}
            redis_connection.xadd(keys.events(job), {"event": b"\xc1"})
            until(lambda: any('"problem"' in told for told in self.told), "it is told that it cannot be read")
            raise Gone("has seen enough")

    connection = Waiting(submit)
    with services.hub.subscribe() as subscription:
        Session(services, connection, subscription).run()
    assert any("cannot be read" in told for told in connection.told)


def test_a_session_whose_events_break_closes_its_connection_instead_of_falling_silent(make_services, redis_connection):
    services = make_services()

    class Closable(Said):
        """Makes the job's stream something else, and waits to be closed."""

        closed = False

        def receive(self) -> str:
            if self._messages:
                return super().receive()
            (job,) = {told["job"]["id"] for told in map(json.loads, self.told) if told["type"] == "job"}
            redis_connection.delete(keys.events(job))
            redis_connection.set(keys.events(job), "no stream")
            until(lambda: self.closed, "it is closed")
            raise Gone("closed")

        def close(self) -> None:
            self.closed = True

    connection = Closable('{"type": "submit", "body": {"prompt": "x"}}')
    with services.hub.subscribe() as subscription:
        Session(services, connection, subscription).run()
    assert connection.closed
