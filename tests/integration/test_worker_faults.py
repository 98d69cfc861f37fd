"""What worker processes do when engines hang, prompts kill, deadlines pass, and Redis is away or full."""

import signal
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import OutOfMemoryError

from broker import keys
from broker.connection import connect
from broker.event_streams import EventHub
from broker.leases import Lifetimes
from broker.request_store import RequestStore
from broker.states import FINISHED, State
from firstdraft.local.embedded import embedded_server
from schemas.events import EventKind
from schemas.policy import Tier
from schemas.results import FailureKind
from tests.polling import until
from tests.processes import running
from tests.samples import a_request
from tests.taking import quarantined

#: Seconds in which a request must have ended, takeovers included.
ENDS_S = 30.0


def ask(store: RequestStore, prompt: str = "why is the sky blue", **body: object) -> str:
    return store.create(a_request(prompt, **body))


def end_of(store: RequestStore, request_id: str):
    until(lambda: store.state(request_id) in FINISHED, f"{request_id} ends", within_s=ENDS_S)
    return store.read(request_id)


def is_in(store: RequestStore, request_id: str, state: State) -> None:
    until(lambda: store.state(request_id) == state, f"{request_id} is {state}")


def test_a_hung_engine_is_noticed_gives_its_requests_up_and_ends_its_worker(start_worker, worker_store):
    hung = start_worker("edge", delay_s=0.05, FIRSTDRAFT_REQUESTS__STALL_S="1")
    bystander = ask(worker_store, "slow and steady")
    is_in(worker_store, bystander, State.DRAFTING)
    culprit = ask(worker_store, "hang")
    assert hung.wait(15) == 1
    assert hung.said("engine_hung")
    worker_store.cancel(culprit)
    start_worker("edge")
    record = end_of(worker_store, bystander)
    assert (record.state, record.attempt) == (State.SUCCEEDED, 2)


def test_a_prompt_that_kills_its_worker_fails_with_its_history_and_alone(start_worker, worker_store):
    bystanders = [ask(worker_store, "slow and steady") for _ in range(4)]
    poison = ask(worker_store, "kill")
    for _ in range(4):  # as what restarts workers would; the fourth outlives it
        worker = start_worker("edge", delay_s=0.02)
        until(
            lambda worker=worker: worker.has_ended() or worker_store.state(poison) in FINISHED,
            "the worker is killed, or the poison is given up",
            within_s=ENDS_S,
        )
    failure = worker_store.read(poison).failure
    assert failure.kind == FailureKind.ATTEMPTS_EXHAUSTED
    assert [lost.attempt for lost in failure.attempts] == [1, 2, 3]
    assert len({lost.worker for lost in failure.attempts}) == 3
    assert quarantined(worker_store, a_request("kill")) == poison
    ended = [end_of(worker_store, one) for one in bystanders]
    assert [record.state for record in ended] == [State.SUCCEEDED] * 4
    assert max(record.attempt for record in ended) <= 2, "what died with it once is not beside it again"


def test_bystanders_of_a_death_hold_each_other_up_only_until_their_first_text(start_worker, worker_store):
    killed = start_worker("edge", delay_s=0.2)
    bystanders = [ask(worker_store, "slow and steady") for _ in range(4)]
    for one in bystanders:
        is_in(worker_store, one, State.DRAFTING)
    killed.signal(signal.SIGKILL)
    start_worker("edge", delay_s=0.2)
    until(
        lambda: all(worker_store.state(one) == State.DRAFTING for one in bystanders),
        "all are drafted beside each other again",
        within_s=ENDS_S,
    )


def test_a_request_that_was_lost_and_writes_nothing_keeps_others_out_for_seconds_only(start_worker, worker_store):
    killed = start_worker("edge")
    silent = ask(worker_store, "forever")
    is_in(worker_store, silent, State.DRAFTING)
    killed.signal(signal.SIGKILL)
    start_worker("edge")
    until(lambda: worker_store.read(silent).attempt == 2, "it is tried again", within_s=ENDS_S)
    assert end_of(worker_store, ask(worker_store)).state == State.SUCCEEDED
    assert worker_store.cancel(silent)


@pytest.mark.parametrize("policy", ["edge_only", "cloud_only", "no_confidence"])
def test_an_empty_answer_is_an_answer_and_kills_nobody(start_worker, worker_store, policy):
    workers = [start_worker("edge"), start_worker("cloud")]
    record = end_of(worker_store, ask(worker_store, "empty", policy=policy))
    assert (record.result.text, record.result.finish_reason, record.attempt) == ("", "stop", 1 + ("no_" in policy))
    assert end_of(worker_store, ask(worker_store, policy=policy)).state == State.SUCCEEDED
    assert not any(worker.said("background_step_failed") for worker in workers)


@pytest.mark.parametrize("prompt", ["misconclude", "uncommittable"])
def test_what_breaks_between_the_engine_and_the_commit_fails_its_request_at_once_with_its_reason(
    start_worker, worker_store, prompt
):
    worker = start_worker("edge")
    bystander = ask(worker_store, "slow and steady")
    failure = end_of(worker_store, ask(worker_store, prompt)).failure
    assert failure.kind == FailureKind.INTERNAL_ERROR
    assert "the fake's product cannot be committed" in failure.message
    assert worker.said("request_broke")
    assert end_of(worker_store, bystander).attempt == 1
    assert "taken_over" not in worker_store.counters()


def test_what_cannot_be_told_to_the_prefix_index_is_answered_all_the_same(start_worker, worker_store):
    start_worker("edge")
    assert end_of(worker_store, ask(worker_store, "unpublished")).state == State.SUCCEEDED


def test_events_that_cannot_be_published_fail_their_request_and_hold_up_no_other(start_worker, worker_store):
    start_worker("edge", delay_s=0.1)
    bystander = ask(worker_store, "slow and steady")
    failure = end_of(worker_store, ask(worker_store, "unspeakable words")).failure
    assert failure.kind == FailureKind.INTERNAL_ERROR
    assert "its events could not be published" in failure.message
    assert end_of(worker_store, bystander).attempt == 1


@pytest.mark.parametrize(("tier", "policy"), [("edge", "edge_only"), ("cloud", "cloud_only")])
def test_a_deadline_stops_the_engine_and_fails_the_request(start_worker, worker_store, tier, policy):
    start_worker(tier, capacity=1)
    endless = ask(worker_store, "forever", policy=policy, deadline_s=1.0)
    after = ask(worker_store, policy=policy)
    assert end_of(worker_store, endless).failure.kind == FailureKind.DEADLINE_EXCEEDED
    assert end_of(worker_store, after).state == State.SUCCEEDED
    assert "taken_over" not in worker_store.counters()


def test_a_request_whose_deadline_passed_in_the_queue_is_not_drafted(start_worker, worker_store, redis_connection):
    late = ask(worker_store, deadline_s=60)
    redis_connection.hset(keys.request(late), "deadline_at", 1)
    start_worker("edge")
    assert end_of(worker_store, late).failure.kind == FailureKind.DEADLINE_EXCEEDED
    assert not drafts_of(redis_connection, late)


@pytest.mark.parametrize(
    ("tier", "policy", "state"),
    [("edge", "edge_only", State.DRAFTING), ("cloud", "cloud_only", State.VERIFYING)],
)
def test_a_cancelled_request_frees_its_engine_within_a_second_or_so(start_worker, worker_store, tier, policy, state):
    start_worker(tier, capacity=1)
    endless = ask(worker_store, "forever", policy=policy)
    is_in(worker_store, endless, state)
    after = ask(worker_store, policy=policy)
    assert worker_store.cancel(endless)
    until(lambda: worker_store.state(after) == State.SUCCEEDED, "the next one is answered", within_s=5.0)


def test_a_killed_verifiers_request_goes_on_from_the_saved_draft(start_worker, worker_store):
    start_worker("edge")
    killed = start_worker("cloud", delay_s=0.5)
    request_id = ask(worker_store, "unsure of this")
    is_in(worker_store, request_id, State.VERIFYING)
    killed.signal(signal.SIGKILL)
    start_worker("cloud")
    record = end_of(worker_store, request_id)
    assert (record.state, record.result.tier, record.attempt) == (State.SUCCEEDED, Tier.CLOUD, 3)
    assert record.result.draft.accepted_tokens > 0
    assert worker_store.counters()["escalated"] == 1


def test_a_worker_waits_for_a_redis_that_is_away_and_then_commits_what_it_did(tmp_path):
    data, log = tmp_path / "data", tmp_path / "log"
    lifetimes = Lifetimes(60, 30.0, 3)
    with running_server_and_worker(data, log) as (server, url, worker):
        redis = connect(url)
        store = RequestStore(redis, lifetimes)
        request_id = ask(store, "slow and steady")
        is_in(store, request_id, State.DRAFTING)
        server.close()
        until(lambda: worker.said("commit_waits"), "the work is done while Redis is away", within_s=20)
        with embedded_server(data):
            record = end_of(store, request_id)
            assert (record.state, record.attempt) == (State.SUCCEEDED, 1)
            assert end_of(store, ask(store)).state == State.SUCCEEDED
            text = "".join(event["text"] for event in drafts_of(redis, request_id))
            assert text == record.result.text
        redis.close()


def test_while_redis_is_full_what_was_let_in_is_finished_whole_and_nothing_more_is_let_in(
    start_worker, worker_store, redis_connection
):
    worker = start_worker("edge", delay_s=0.05, capacity=1)
    ids = [ask(worker_store) for _ in range(2)]
    is_in(worker_store, ids[0], State.DRAFTING)
    redis_connection.config_set("maxmemory", 1)
    try:
        assert [end_of(worker_store, one).state for one in ids] == [State.SUCCEEDED] * 2
        with pytest.raises(OutOfMemoryError):
            ask(worker_store)
    finally:
        redis_connection.config_set("maxmemory", 0)
    assert worker.said("redis_away loop=event-publisher")
    for request_id in ids:
        kinds = [one.event.type for one in EventHub(redis_connection).read(request_id)]
        assert (kinds[-1], worker_store.read(request_id).result.text) == (
            EventKind.DONE,
            worker_store.read(ids[0]).result.text,
        )
    assert end_of(worker_store, ask(worker_store)).state == State.SUCCEEDED


@contextmanager
def running_server_and_worker(data: Path, log: Path):
    """A server that can be stopped before the block ends, and a slow worker on it."""
    with ExitStack() as server:
        url = server.enter_context(embedded_server(data))
        environment = {"REDIS_URL": url, "FIRSTDRAFT_REQUESTS__LEASE_S": "30"}
        with running("tests.fakes.worker", "edge", "0.02", log=log, **environment) as worker:
            until(lambda: worker.said("worker_ready"), "the worker is ready", within_s=30)
            yield server, url, worker


def drafts_of(redis: Redis, request_id: str):
    return [e.event.model_dump() for e in EventHub(redis).read(request_id) if e.event.type == EventKind.DRAFT]
