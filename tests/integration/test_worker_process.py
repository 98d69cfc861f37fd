import signal

import pytest
from rq import Worker
from rq.registry import StartedJobRegistry

from broker.event_streams import EventHub
from broker.presence import Presence
from broker.rq_transport import MsgpackSerializer, TransportJob, queue
from broker.states import State
from schemas.policy import Tier
from schemas.results import FailureKind
from tests.polling import until
from tests.samples import a_request, a_result
from tests.taking import take_one

#: Seconds in which a stopping worker must have ended, and in which a crashed one's request must be going on.
STOP_S, TAKEOVER_S = 6.0, 15.0


@pytest.fixture
def ask(worker_store):
    def submit(prompt="why is the sky blue", **body):
        request = a_request(prompt, **body)
        worker_store.create(request)
        return request.request_id

    return submit


@pytest.fixture
def is_drafting(worker_store):
    def wait(request_id, within_s=10.0):
        until(lambda: worker_store.state(request_id) == State.DRAFTING, "the draft is begun", within_s=within_s)

    return wait


def outcomes(redis, request_id):
    kinds = [streamed.event.type for streamed in EventHub(redis).read(request_id)]
    return [kind for kind in kinds if kind in {"done", "failed", "cancelled"}]


def rq_workers(redis, tier):
    return Worker.all(queue=queue(redis, tier), job_class=TransportJob, serializer=MsgpackSerializer)


def test_what_the_edge_cannot_write_is_left_to_the_cloud_without_a_draft(
    ask, ended, start_worker, redis_connection, worker_store
):
    start_worker("edge")
    start_worker("cloud")
    request_id = ask("beyond the edge")
    result = ended(request_id).result
    assert (result.tier, result.draft, result.confidence) == (Tier.CLOUD, None, None)
    assert result.text.split() == ["edge", "the", "BEYOND"] * 4
    events = [streamed.event for streamed in EventHub(redis_connection).read(request_id)]
    (decision,) = [event for event in events if event.type == "decision"]
    assert (decision.escalated, decision.confidence) == (True, None)
    assert decision.reason == "the edge cannot write it: json_schema: the fake edge keeps none"
    assert worker_store.read(request_id).draft is None


def test_where_the_policy_has_no_cloud_what_the_edge_cannot_write_is_refused(ask, ended, start_worker):
    start_worker("edge")
    failure = ended(ask("beyond the edge", policy="edge_only")).failure
    assert (failure.kind, failure.tier) == (FailureKind.UNSUPPORTED_OPTION, Tier.EDGE)
    assert failure.message == "json_schema: the fake edge keeps none"


def test_32_requests_over_both_tiers_end_in_exactly_one_outcome_each(
    ask, ended, start_worker, redis_connection, worker_store
):
    start_worker("edge", capacity=8)
    start_worker("cloud", capacity=8)
    prompts = ["why is the sky blue", "unsure of this", "refuse this", "break on this"] * 8
    ids = [ask(prompt) for prompt in prompts]
    records = [ended(request_id) for request_id in ids]
    told = [(record.state, record.result and record.result.tier) for record in records]
    assert (
        told
        == [
            (State.SUCCEEDED, Tier.EDGE),
            (State.SUCCEEDED, Tier.CLOUD),
            (State.FAILED, None),
            (State.FAILED, None),
        ]
        * 8
    )
    assert all(len(outcomes(redis_connection, request_id)) == 1 for request_id in ids)
    assert {record.failure.kind for record in records[2::4]} == {FailureKind.PROMPT_TOO_LONG}
    assert {record.failure.kind for record in records[3::4]} == {FailureKind.ENGINE_ERROR}
    counted = worker_store.counters()
    assert (counted["answered_edge"], counted["answered_cloud"], counted["failed"]) == (8, 8, 16)
    assert "stale_commits" not in counted


def test_a_verified_answer_tells_what_became_of_its_draft(ask, ended, start_worker, redis_connection):
    start_worker("edge")
    start_worker("cloud")
    record = ended(ask("unsure of this"))
    draft = record.result.draft
    assert (draft.drafted_tokens, draft.accepted_tokens, draft.rewritten_tokens) == (12, 8, 4)
    assert record.result.confidence.value < record.result.confidence.threshold
    timings = record.result.timings
    assert min(timings.drafting_ms, timings.verifying_ms, timings.total_ms) > 0
    assert timings.total_ms >= timings.queued_ms + timings.drafting_ms + timings.verify_queued_ms
    events = [streamed.event for streamed in EventHub(redis_connection).read(record.request_id)]
    answer = "".join(event.text for event in events if event.type in {"accepted", "corrected"})
    assert answer == record.result.text
    assert "".join(event.text for event in events if event.type == "draft") == record.draft.text
    assert [event.type for event in events if event.type not in {"draft", "accepted", "corrected"}] == [
        "queued",
        "started",
        "decision",
        "queued",
        "started",
        "done",
    ]


def test_no_more_is_taken_than_there_is_room_for_and_rq_sees_the_worker_with_its_executions(
    ask, start_worker, redis_connection, worker_store, is_drafting
):
    start_worker("edge", capacity=3)
    ids = [ask("forever") for _ in range(8)]
    until(lambda: worker_store.waiting()["edge"] == 5, "as many are taken as there is room for")
    for request_id in ids[:3]:
        is_drafting(request_id)
    assert [worker_store.state(request_id) for request_id in ids[3:]] == [State.QUEUED] * 5
    (worker,) = rq_workers(redis_connection, Tier.EDGE)
    assert worker.get_state() == "busy"
    registry = StartedJobRegistry(queue=queue(redis_connection, Tier.EDGE))
    assert sorted(registry.get_job_ids()) == sorted(f"{request_id}-edge" for request_id in ids[:3])
    (report,) = until(
        lambda: [r for r in Presence(redis_connection, 2.0).live() if r.in_flight == 3], "the report tells of three"
    )
    assert (report.capacity, report.tier, report.ready) == (3, Tier.EDGE, True)
    for request_id in ids:
        assert worker_store.cancel(request_id)
    until(lambda: worker_store.waiting()["edge"] == 0, "cancelled requests give their slots back")
    until(lambda: registry.get_job_ids() == [], "nothing is started any more")


def test_a_cancelled_request_stops_the_engine_and_its_slot_is_free(ask, ended, start_worker, worker_store, is_drafting):
    start_worker("edge", capacity=1)
    endless = ask("forever")
    is_drafting(endless)
    waiting = ask()
    assert worker_store.cancel(endless)
    assert ended(waiting).state == State.SUCCEEDED
    assert worker_store.state(endless) == State.CANCELLED


def test_a_worker_that_is_told_to_stop_lets_what_is_nearly_done_finish(ask, ended, start_worker, is_drafting):
    worker = start_worker("edge", delay_s=0.05)
    request_id = ask()
    is_drafting(request_id)
    worker.signal(signal.SIGTERM)
    assert worker.wait(STOP_S) == 0
    assert ended(request_id, within_s=0.1).state == State.SUCCEEDED


def test_a_worker_that_is_told_to_stop_hands_back_what_is_not_done_and_says_good_bye(
    ask, start_worker, redis_connection, worker_store, is_drafting
):
    worker = start_worker("edge")
    ids = [ask("forever") for _ in range(4)]
    for request_id in ids:
        is_drafting(request_id)
    worker.signal(signal.SIGTERM)
    assert worker.wait(STOP_S) == 0
    assert [worker_store.state(request_id) for request_id in ids] == [State.QUEUED] * 4
    assert worker_store.waiting()["edge"] == 4
    assert worker_store.counters()["handed_back"] == 4
    assert Presence(redis_connection, 2.0).live() == []
    assert rq_workers(redis_connection, Tier.EDGE) == []


def test_what_a_killed_worker_held_another_finishes_in_time(ask, ended, start_worker, is_drafting):
    killed = start_worker("edge", delay_s=0.5)
    request_id = ask()
    is_drafting(request_id)
    start_worker("edge")
    killed.signal(signal.SIGKILL)
    record = ended(request_id, within_s=TAKEOVER_S)
    assert (record.state, record.attempt) == (State.SUCCEEDED, 2)


def test_a_worker_that_slept_past_its_lease_is_refused(ask, ended, start_worker, worker_store, is_drafting):
    sleeper = start_worker("edge", delay_s=0.1)
    request_id = ask()
    is_drafting(request_id)
    sleeper.signal(signal.SIGSTOP)
    start_worker("edge")
    record = ended(request_id, within_s=TAKEOVER_S)
    sleeper.signal(signal.SIGCONT)
    until(lambda: sleeper.said("lease_lost") or sleeper.said("commit_came_too_late"), "the sleeper learns of it")
    assert worker_store.read(request_id) == record
    assert (record.state, record.attempt) == (State.SUCCEEDED, 2)
    assert ended(ask()).state == State.SUCCEEDED


def test_a_request_that_comes_back_to_a_worker_that_still_works_on_it_succeeds(
    ask, ended, start_worker, worker_store, is_drafting, make_due
):
    start_worker("edge", delay_s=0.2)
    request_id = ask()
    is_drafting(request_id)
    lease = worker_store.read(request_id)
    make_due(request_id)
    worker_store.expire()
    until(lambda: worker_store.read(request_id).attempt > lease.attempt, "it is taken again")
    record = ended(request_id)
    assert (record.state, record.failure) == (State.SUCCEEDED, None)
    assert record.attempt == 2


def test_when_the_engine_dies_the_worker_ends_with_status_1_and_another_goes_on(
    ask, ended, start_worker, worker_store, is_drafting
):
    dying = start_worker("edge", delay_s=0.1, capacity=2)
    bystander = ask("slow and steady")
    is_drafting(bystander)
    deadly = ask("die")
    assert dying.wait(STOP_S) == 1
    assert "died" in dying.log.read_text()
    assert worker_store.cancel(deadly)
    start_worker("edge", delay_s=0.001)
    assert ended(bystander).state == State.SUCCEEDED
    assert worker_store.counters()["taken_over"] == 2


def test_no_prompt_is_in_any_key_of_rq_or_any_log_whatever_became_of_the_request(
    ask, ended, start_worker, redis_connection
):
    word = "xyzzyplugh"
    redis_connection.config_set("rdbcompression", "no")
    workers = [start_worker("edge"), start_worker("cloud")]
    for behaviour in ("", "unsure", "refuse", "break"):
        ended(ask(f"{word} {behaviour}"))
    raw = b"".join(name + (redis_connection.dump(name) or b"") for name in redis_connection.scan_iter("rq:*"))
    assert raw
    assert word.encode() not in raw
    assert [word in worker.log.read_text() for worker in workers] == [False, False]


def test_a_worker_goes_on_when_its_connections_are_cut(ask, ended, start_worker, redis_connection):
    start_worker("edge", delay_s=0.05)
    first = ask()
    redis_connection.client_kill_filter(_type="normal", skipme=True)
    redis_connection.client_kill_filter(_type="pubsub")
    assert ended(first).state == State.SUCCEEDED
    assert ended(ask()).state == State.SUCCEEDED


def test_a_stale_commit_is_counted(ask, worker_store):
    ask()
    lease = take_one(worker_store, Tier.EDGE, "w1").lease
    assert worker_store.cancel(lease.request_id)
    assert not worker_store.succeed(lease, a_result(), [])
    assert worker_store.counters()["stale_commits"] == 1
