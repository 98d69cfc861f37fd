import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker import keys, run_queues
from broker.routing import Neighbour
from broker.run_queues import RunQueues, list_of, own_queue
from schemas.policy import Tier
from tests.polling import until

A, B = own_queue(Tier.EDGE, "a@1"), own_queue(Tier.EDGE, "b@1")


@pytest.fixture
def queues(redis_connection):
    return RunQueues(redis_connection, Tier.EDGE)


@pytest.fixture
def sums(queues):
    """The tokens and jobs of workers."""

    def loads(*workers):
        return {worker: (load.tokens, load.num_jobs) for worker, load in queues.loads(workers).items()}

    return loads


@pytest.fixture
def jobs_on(redis_connection):
    def jobs(queue):
        return [job.decode() for job in redis_connection.lrange(list_of(queue), 0, -1)]

    return jobs


def kill(redis, queue):
    """As if the queue's worker had not renewed its lease."""
    assert redis.delete(keys.queue_lease(queue)) == 1


def test_a_job_goes_onto_its_workers_own_queue_and_counts_there(queues, sums, jobs_on):
    queues.survey(A)
    queues.push("j1", "a@1", 300)
    queues.push("j2", "a@1", 200)
    assert jobs_on(A) == ["j1", "j2"]
    assert sums("a@1", "b@1") == {"a@1": (500, 2), "b@1": (0, 0)}
    assert queues.holds("j1")


def test_nothing_is_put_on_the_queue_of_a_worker_that_does_not_live(queues, sums, jobs_on, redis_connection):
    queues.push("j1", "never@1", 300)
    queues.survey(A)
    kill(redis_connection, A)
    queues.push("j2", "a@1", 300)
    assert jobs_on(queues.shared) == ["j1", "j2"]
    assert jobs_on(A) == []
    assert sums("a@1") == {"a@1": (0, 0)}


def test_a_queue_lives_as_long_as_it_is_renewed(queues, redis_connection, monkeypatch):
    monkeypatch.setattr(run_queues, "QUEUE_LEASE_S", 0.2)
    queues.survey(A)
    until(lambda: not redis_connection.exists(keys.queue_lease(A)), "the lease ends", within_s=3)


def test_a_job_that_is_done_counts_no_more_and_is_done_once(queues, sums):
    queues.survey(A)
    queues.push("j1", "a@1", 300)
    assert [queues.done("j1"), queues.done("j1"), queues.done("unknown")] == [300, 0, 0]
    assert sums("a@1") == {"a@1": (0, 0)}


def test_a_job_that_is_pushed_again_counts_once(queues, sums):
    queues.survey(A)
    queues.push("j1", "a@1", 300)
    queues.push("j1", "a@1", 100)
    assert sums("a@1") == {"a@1": (100, 1)}


def test_what_was_sent_of_late_is_remembered_after_it_is_done_and_fades(queues, redis_connection):
    queues.survey(A)
    for job in ("j1", "j2"):
        queues.push(job, "a@1", 300)
        queues.done(job)
    assert queues.loads(["a@1"])["a@1"].recent_tokens == pytest.approx(600, rel=0.05)
    seconds, _ = redis_connection.time()
    own = own_queue(Tier.EDGE, "a@1")
    redis_connection.hset(keys.loads(), f"recent:{own}", f"600 {seconds - run_queues.RECENT_S}")
    assert queues.loads(["a@1"])["a@1"].recent_tokens == pytest.approx(600 / 2.718, rel=0.05)


def test_the_newest_jobs_are_stolen_in_their_order_and_take_their_work_along(queues, sums, jobs_on):
    for queue in (A, B):
        queues.survey(queue)
    for number in range(1, 6):
        queues.push(f"j{number}", "a@1", number)
    assert queues.move(A, B, 3, newest=True) == ["j5", "j4", "j3"]
    assert (jobs_on(A), jobs_on(B)) == (["j1", "j2"], ["j3", "j4", "j5"])
    assert sums("a@1", "b@1") == {"a@1": (3, 2), "b@1": (12, 3)}
    assert queues.holds("j4")


def test_a_job_of_the_shared_queue_is_waited_for(queues, sums, jobs_on):
    queues.survey(A)
    assert queues.wait_for_shared(A, 0.05) is None
    queues.push("j1", None, 300)
    assert queues.wait_for_shared(A, 5) == "j1"
    assert jobs_on(A) == ["j1"]
    assert sums("a@1") == {"a@1": (300, 1)}


def test_a_survey_tells_of_the_others_and_of_the_dead(queues, redis_connection):
    queues.survey(A)
    queues.survey(B)
    queues.push("j1", "b@1", 1)
    queues.push("j2", "b@1", 1)
    redis_connection.lpop(list_of(B))
    queues.push("j3", None, 1)
    survey = queues.survey(A)
    assert (survey.num_own, survey.num_shared) == (0, 1)
    assert survey.neighbours == (Neighbour(B, num_waiting=1, num_jobs=2, alive=True),)
    kill(redis_connection, B)
    assert [neighbour.alive for neighbour in queues.survey(A).neighbours] == [False]


def test_a_dead_queue_is_buried_once_it_is_empty_with_all_that_was_in_its_workers_hands(queues, sums, redis_connection):
    queues.survey(A)
    for job in ("waits", "in hand"):
        queues.push(job, "a@1", 100)
    redis_connection.rpop(list_of(A))
    assert not queues.bury(A)
    kill(redis_connection, A)
    assert not queues.bury(A)
    queues.move(A, queues.shared, 10)
    assert queues.bury(A)
    assert redis_connection.smembers(keys.run_queues(Tier.EDGE)) == set()
    assert set(redis_connection.hgetall(keys.placements())) == {b"waits"}
    assert sums("a@1") == {"a@1": (0, 0)}


def test_who_leaves_puts_what_waits_before_what_waits_for_all(queues, jobs_on, redis_connection):
    queues.survey(A)
    queues.push("later", None, 1)
    for job in ("j1", "j2"):
        queues.push(job, "a@1", 1)
    queues.leave(A)
    assert jobs_on(queues.shared) == ["j1", "j2", "later"]
    assert list_of(A).encode() not in redis_connection.smembers("rq:queues")


def test_all_that_waits_for_a_tier_is_counted(queues):
    queues.survey(A)
    queues.push("j1", "a@1", 1)
    queues.push("j2", None, 1)
    assert queues.num_waiting() == 2


orders = st.lists(
    st.tuples(st.sampled_from(["push", "push_shared", "move", "done", "bury", "renew", "kill"]), st.integers(0, 5)),
    max_size=30,
)


@given(orders)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_job_is_lost_and_the_sums_are_those_of_the_placements(queues, redis_connection, orders):
    redis_connection.flushall()
    waiting = set()
    for what, number in orders:
        job = f"j{number}"
        if what.startswith("push") and job not in waiting:
            queues.push(job, "a@1" if what == "push" else None, 10 + number)
            waiting.add(job)
        elif what == "move":
            queues.move(*((A, B) if number % 2 else (B, A)), number)
        elif what == "done" and (taken := redis_connection.lpop(list_of(A))):
            queues.done(taken.decode())
            waiting.discard(taken.decode())
        elif what == "bury":
            queues.bury(A)
        elif what == "renew":
            queues.survey(A)
        elif what == "kill":
            redis_connection.delete(keys.queue_lease(A))
    lists = [redis_connection.lrange(list_of(queue), 0, -1) for queue in (A, B, queues.shared)]
    assert sorted(job.decode() for jobs in lists for job in jobs) == sorted(waiting)
    expected = {}
    for entry in redis_connection.hgetall(keys.placements()).values():
        tokens, queue = entry.decode().split(" ")
        for field, amount in ((f"tokens:{queue}", int(tokens)), (f"jobs:{queue}", 1)):
            expected[field] = expected.get(field, 0) + amount
    noted = {field.decode(): value for field, value in redis_connection.hgetall(keys.loads()).items()}
    assert {field: int(value) for field, value in noted.items() if not field.startswith("recent:")} == expected
