"""Workers' own lines as whole processes live with them: what waits for one that dies, stops or falls behind."""

import signal
import time

import pytest

from broker import keys
from broker.states import FINISHED, State
from schemas.policy import Tier
from schemas.routing_decision import RoutingDecision, RoutingReason
from tests.polling import until
from tests.samples import a_request

#: Seconds within which what waits for a dead worker must have been taken over, its life of 5 s included.
TAKEN_OVER_S = 12.0


@pytest.fixture
def ask(worker_store):
    def submit(prompt, worker):
        request = a_request(prompt, policy="edge_only")
        route = RoutingDecision(worker=worker, reason=RoutingReason.PREFIX, prompt_tokens=5, work_tokens=20)
        worker_store.create(request, route=route)
        return request.request_id

    return submit


@pytest.fixture
def all_ended(worker_store):
    def wait(ids, within_s):
        until(
            lambda: all(worker_store.state(request_id) in FINISHED for request_id in ids),
            "all have ended",
            within_s=within_s,
        )
        return [worker_store.read(request_id) for request_id in ids]

    return wait


@pytest.fixture
def start(start_worker, redis_connection):
    """Starts an edge worker; gives its process and the name that its line goes by."""

    def started(**options):
        before = redis_connection.zrange(keys.workers(Tier.EDGE), 0, -1)
        process = start_worker("edge", **options)
        (name,) = set(redis_connection.zrange(keys.workers(Tier.EDGE), 0, -1)) - set(before)
        return process, name.decode()

    return started


def test_a_request_goes_to_the_worker_that_it_was_routed_to(ask, all_ended, start):
    start()
    _, second = start()
    records = all_ended([ask("why is the sky blue", second) for _ in range(6)], within_s=20)
    assert {record.state for record in records} == {State.SUCCEEDED}
    assert {record.routes[Tier.EDGE].worker for record in records} == {second}


def test_what_waits_for_a_killed_worker_is_done_by_another_within_seconds(ask, all_ended, start, worker_store):
    first, name = start(capacity=2)
    for _ in range(2):
        ask("forever", name)
    waiting = [ask("why is the sky blue", name) for _ in range(10)]
    until(lambda: worker_store.waiting()["edge"] == 10, "ten wait")
    first.signal(signal.SIGKILL)
    start(capacity=4)
    records = all_ended(waiting, within_s=TAKEN_OVER_S)
    assert {record.state for record in records} == {State.SUCCEEDED}


def test_a_worker_with_room_steals_from_a_long_queue(ask, all_ended, start):
    _, name = start(capacity=1, delay_s=0.05)
    waiting = [ask("why is the sky blue", name) for _ in range(12)]
    second, _ = start(capacity=8)
    records = all_ended(waiting, within_s=20)
    assert {record.state for record in records} == {State.SUCCEEDED}
    until(lambda: second.said("requests_stolen"), "the second says what it took")


def test_who_stops_leaves_what_waits_to_others(ask, all_ended, start, worker_store):
    first, name = start(capacity=1)
    ask("forever", name)
    waiting = [ask("why is the sky blue", name) for _ in range(5)]
    until(lambda: worker_store.waiting()["edge"] == 5, "five wait")
    first.signal(signal.SIGTERM)
    assert first.wait(10) == 0
    start(capacity=4)
    assert {record.state for record in all_ended(waiting, within_s=10)} == {State.SUCCEEDED}


def test_a_dead_workers_line_gets_nothing_more_and_is_forgotten(ask, all_ended, start, redis_connection):
    first, name = start()
    first.signal(signal.SIGKILL)
    start()

    def forgotten():
        return redis_connection.zscore(keys.workers(Tier.EDGE), name) is None

    until(forgotten, "the dead worker is forgotten", within_s=TAKEN_OVER_S)
    records = all_ended([ask("why is the sky blue", name)], within_s=10)
    assert records[0].state == State.SUCCEEDED


def test_a_request_that_was_let_wait_for_anybody_wakes_an_idle_worker_at_once(ask, all_ended, start):
    start()
    began = time.monotonic()
    for _ in range(10):
        all_ended([ask("why is the sky blue", None)], within_s=10)
    assert time.monotonic() - began < 10, "ten looks of an idle worker would take 20 s"
