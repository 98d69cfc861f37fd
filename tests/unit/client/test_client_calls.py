"""What a client says, with the network played by a script of replies."""

import json

import pytest

from firstdraft.client.calls import (
    Call,
    Conversations,
    Pause,
    Reply,
    job_body,
    job_path,
    policy_of,
    problem_of,
    read_as,
    result_of,
)
from firstdraft.client.errors import (
    APIError,
    Busy,
    InvalidRequest,
    JobCancelled,
    JobFailed,
    NotAllowed,
    NotFound,
    NotInTime,
    Unreachable,
)
from firstdraft.client.retries import IDEMPOTENCY_HEADER, RetryRule
from firstdraft.client.statistics import Counters
from schemas.jobs import Job
from schemas.requests import Message
from schemas.results import Failure, FailureKind
from tests.samples import a_result

RULE = RetryRule(max_retries=2, first_delay_s=0.5)
LOST = Reply(error=OSError("reset"))
NEVER_SENT = Reply(error=OSError("refused"), may_have_arrived=False)
BUSY = Reply(503, b'{"title": "Busy", "status": 503, "detail": "later"}', {"retry-after": "3"})
FINE = Reply(200, b"{}")


def a_job(status="succeeded", **parts):
    return Job(id="j1", status=status, policy="baseline", created_at=1.0, **parts)


def reply_of(job):
    return Reply(200, job.model_dump_json().encode())


def play(conversation, replies):
    """Everything that was said to the network, and what came of it."""
    said, replies = [], iter(replies)
    step = next(conversation)
    try:
        while True:
            said.append(step)
            step = next(conversation) if isinstance(step, Pause) else conversation.send(next(replies))
    except StopIteration as done:
        return said, done.value


def test_a_call_that_works_is_made_once():
    counters = Counters()
    said, reply = play(Conversations(RULE, counters).exchange(Call("GET", "/x")), [FINE])
    assert said == [Call("GET", "/x")]
    assert reply is FINE
    assert counters.read().retries == 0


def test_a_submission_carries_one_idempotency_key_over_all_tries():
    said, _ = play(Conversations(RULE, Counters()).exchange(Call("POST", "/x")), [LOST, BUSY, FINE])
    keys = {call.headers[IDEMPOTENCY_HEADER] for call in said if isinstance(call, Call)}
    assert len(keys) == 1
    assert len([call for call in said if isinstance(call, Call)]) == 3


def test_the_server_is_given_the_time_that_it_asks_for():
    said, _ = play(Conversations(RULE, Counters()).exchange(Call("GET", "/x")), [BUSY, FINE])
    assert isinstance(said[1], Pause)
    assert 3.0 <= said[1].seconds <= 3.5


@pytest.mark.parametrize("year", [2001, 2099])
def test_a_date_to_try_again_at_is_by_the_servers_clock_and_not_by_ours(year):
    headers = {"date": f"Thu, 01 Jan {year} 00:00:00 GMT", "retry-after": f"Thu, 01 Jan {year} 00:00:03 GMT"}
    said, _ = play(
        Conversations(RULE, Counters()).exchange(Call("GET", "/x")), [Reply(503, BUSY.content, headers), FINE]
    )
    assert 3.0 <= said[1].seconds <= 3.5


@pytest.mark.parametrize("method", ["PATCH"])
def test_what_may_have_arrived_and_cannot_be_repeated_is_not(method):
    with pytest.raises(Unreachable):
        play(Conversations(RULE, Counters()).exchange(Call(method, "/x")), [LOST])
    said, _ = play(Conversations(RULE, Counters()).exchange(Call(method, "/x")), [NEVER_SENT, FINE])
    assert len(said) == 3


def test_retries_end_and_are_counted():
    counters = Counters()
    with pytest.raises(Busy) as refusal:
        play(Conversations(RULE, counters).exchange(Call("GET", "/x")), [BUSY] * 3)
    assert refusal.value.status == 503
    assert counters.read().retries == 2
    with pytest.raises(Unreachable, match=r"tries: 3"):
        play(Conversations(RULE, counters).exchange(Call("GET", "/x")), [LOST] * 3)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InvalidRequest),
        (422, InvalidRequest),
        (401, NotAllowed),
        (404, NotFound),
        (410, NotFound),
        (409, APIError),
    ],
)
def test_a_refusal_is_an_error_of_its_kind_at_once(status, kind):
    document = json.dumps({"title": "No", "status": status, "detail": "because"}).encode()
    with pytest.raises(APIError, match="because") as refusal:
        play(Conversations(RULE, Counters()).exchange(Call("GET", "/x")), [Reply(status, document)])
    assert type(refusal.value) is kind


def test_a_proxys_page_and_openais_errors_are_problems_too():
    assert problem_of(Reply(502, b"<html>bad gateway")).detail == "<html>bad gateway"
    openai = json.dumps({"error": {"type": "invalid_request_error", "message": "no"}}).encode()
    assert (problem_of(Reply(400, openai)).title, problem_of(Reply(400, openai)).detail) == (
        "invalid_request_error",
        "no",
    )


def test_a_job_is_waited_for_until_it_has_finished():
    replies = [reply_of(a_job("queued")), reply_of(a_job("drafting")), reply_of(a_job(result=a_result()))]
    said, job = play(Conversations(RULE, Counters()).wait("j1", None), replies)
    assert job.result == a_result()
    assert [call.params["wait"] for call in said] == [30.0] * 3
    assert all(call.patience_s == 30.0 for call in said)


def test_a_quick_answer_takes_one_call():
    said, job = play(Conversations(RULE, Counters()).infer("p", timeout_s=None), [reply_of(a_job(result=a_result()))])
    assert job.result == a_result()
    (call,) = said
    assert (call.method, call.json, call.params["wait"]) == ("POST", {"prompt": "p"}, 30.0)


def test_an_answer_that_takes_longer_is_waited_for():
    replies = [reply_of(a_job("drafting")), reply_of(a_job(result=a_result()))]
    said, job = play(Conversations(RULE, Counters()).infer("p", timeout_s=100.0), replies)
    assert job.result == a_result()
    assert [(call.method, call.path) for call in said] == [("POST", "/v1/jobs"), ("GET", "/v1/jobs/j1")]


def test_a_wait_that_ends_says_that_the_job_goes_on():
    with pytest.raises(NotInTime, match="goes on"):
        play(Conversations(RULE, Counters()).wait("j1", 0.0), [reply_of(a_job("queued"))])


def test_where_there_is_no_place_for_a_wait_the_job_is_looked_at():
    replies = [BUSY] * 3 + [reply_of(a_job("queued")), reply_of(a_job(result=a_result()))]
    said, job = play(Conversations(RULE, Counters()).wait("j1", None), replies)
    assert job.result is not None
    assert [dict(step.params) for step in said if isinstance(step, Call)][3:] == [{}, {"wait": 30.0}]


def test_a_job_without_an_answer_is_an_error():
    failure = Failure(kind=FailureKind.ENGINE_ERROR, message="it broke")
    with pytest.raises(JobFailed, match="it broke"):
        result_of(a_job("failed", failure=failure))
    with pytest.raises(JobCancelled):
        result_of(a_job("cancelled"))


def test_what_a_newer_gateway_adds_is_passed_over():
    raw = json.loads(a_job(result=a_result()).model_dump_json())
    raw["news"] = 1
    raw["result"]["news"] = {"deeper": 2}
    assert read_as(Job, json.dumps(raw).encode()).result == a_result()


def test_a_prompt_or_a_conversation_becomes_a_body():
    assert job_body("hello", {"max_tokens": None, "seed": 3}) == {"prompt": "hello", "seed": 3}
    turns = [Message(role="user", content="a"), {"role": "assistant", "content": "b"}]
    assert job_body(turns, {})["messages"] == [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
    ]


def test_an_id_cannot_leave_its_place_in_the_path():
    assert job_path("../../x?y") == "/v1/jobs/..%2F..%2Fx%3Fy"


@pytest.mark.parametrize(
    ("verify", "check", "policy"),
    [
        (None, None, None),
        (True, None, "baseline"),
        (None, False, "no_confidence"),
        (False, None, "no_draft_verify"),
        (False, True, "no_draft_verify"),
        (False, False, "edge_only"),
    ],
)
def test_the_modules_that_are_on_name_a_policy(verify, check, policy):
    assert policy_of(verify, check) == policy
