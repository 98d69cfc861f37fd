"""Workers' own queues as whole processes live with them: what waits for one that dies, stops or falls behind."""

import signal

import pytest

from broker import keys
from broker.run_queues import RunQueues, list_of, own_queue
from broker.states import FINISHED, State
from schemas.policy import Tier
from schemas.routing_decision import RoutingDecision, RoutingReason
from tests.polling import until
from tests.samples import a_request
from workers.runtime.work_stealing import Forager

#: Seconds within which what waits for a dead worker must have been taken over, its queue's lease of 5 s included.
TAKEN_OVER_S = 12.0


@pytest.fixture
def queues(redis_connection):
    return RunQueues(redis_connection, Tier.EDGE)


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
    """Starts an edge worker; answers its process and the name that its queue goes by."""

    def started(**options):
        before = redis_connection.smembers("rq:queues")
        process = start_worker("edge", **options)

        def name():
            new = {raw.decode() for raw in redis_connection.smembers("rq:queues") - before}
            return next((key.split("@", 1)[1] for key in new if "@" in key), None)

        return process, until(name, "the worker has a queue")

    return started


def test_a_request_goes_to_the_worker_that_it_was_routed_to(ask, all_ended, start):
    start()
    _, second = start()
    records = all_ended([ask("why is the sky blue", second) for _ in range(6)], within_s=20)
    assert {record.state for record in records} == {State.SUCCEEDED}
    assert {record.routes[Tier.EDGE].worker for record in records} == {second}


def test_what_waits_for_a_killed_worker_is_done_by_another_within_seconds(ask, all_ended, start, queues):
    first, name = start(capacity=2)
    for _ in range(2):
        ask("forever", name)
    waiting = [ask("why is the sky blue", name) for _ in range(10)]
    until(lambda: queues.num_waiting() == 10, "ten wait")
    first.signal(signal.SIGKILL)
    start(capacity=4)
    records = all_ended(waiting, within_s=TAKEN_OVER_S)
    assert {record.state for record in records} == {State.SUCCEEDED}


def test_what_waits_for_a_dead_worker_goes_to_whoever_has_room_first(queues, redis_connection):
    dead, full = own_queue(Tier.EDGE, "dead@1"), own_queue(Tier.EDGE, "full@1")
    queues.survey(dead)
    for job in ("j1", "j2"):
        queues.push(job, "dead@1", 10)
    redis_connection.delete(keys.queue_lease(dead))
    queues.push("later", None, 10)
    forager = Forager(queues, full, capacity=0, is_willing=lambda: True)
    forager.start()
    until(lambda: redis_connection.llen(list_of(queues.shared)) == 3, "the dead worker's queue is taken over")
    assert redis_connection.lrange(list_of(queues.shared), 0, -1) == [b"j1", b"j2", b"later"]
    until(lambda: redis_connection.smembers(keys.run_queues(Tier.EDGE)) == {full.encode()}, "it is forgotten")
    forager.close()


def test_a_worker_with_room_steals_from_a_long_queue(ask, all_ended, start):
    _, name = start(capacity=1, delay_s=0.05)
    waiting = [ask("why is the sky blue", name) for _ in range(12)]
    second, _ = start(capacity=8)
    records = all_ended(waiting, within_s=20)
    assert {record.state for record in records} == {State.SUCCEEDED}
    until(lambda: second.said("jobs_stolen"), "the second says what it took")


def test_who_stops_leaves_what_waits_to_others(ask, all_ended, start, queues):
    first, name = start(capacity=1)
    ask("forever", name)
    waiting = [ask("why is the sky blue", name) for _ in range(5)]
    until(lambda: queues.num_waiting() == 5, "five wait")
    first.signal(signal.SIGTERM)
    assert first.wait(10) == 0
    start(capacity=4)
    assert {record.state for record in all_ended(waiting, within_s=10)} == {State.SUCCEEDED}


def test_a_dead_workers_queue_gets_nothing_more_and_is_forgotten(ask, all_ended, start, redis_connection):
    first, name = start()
    first.signal(signal.SIGKILL)
    start()
    key = f"rq:queue:{own_queue(Tier.EDGE, name)}".encode()
    until(lambda: key not in redis_connection.smembers("rq:queues"), "the queue is forgotten", within_s=TAKEN_OVER_S)
    records = all_ended([ask("why is the sky blue", name)], within_s=10)
    assert records[0].state == State.SUCCEEDED
