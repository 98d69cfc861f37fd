import threading

import pytest
from redis import Redis
from redis.exceptions import OutOfMemoryError, ResponseError

from broker import keys
from broker.event_streams import EventHub
from broker.leases import Lease, Lifetimes
from broker.request_store import RequestStore
from broker.rq_transport import FUNCTION_NAMES, QUEUE_NAMES, JobQueues, queue
from broker.states import FINISHED, State
from schemas.events import DraftText, EventKind
from schemas.policy import Tier
from schemas.results import Failure, FailureKind
from tests.polling import joined, until
from tests.samples import a_draft, a_request, a_result

FAILURE = Failure(kind=FailureKind.ENGINE_ERROR, tier=Tier.EDGE, message="it broke")
SECRET = "xyzzy-plugh"  # a word that must turn up in no key of RQ


def created(store: RequestStore, **body: object) -> str:
    request = a_request(**body)
    store.create(request)
    return request.request_id


def held(store: RequestStore, worker: str = "w1", **body: object) -> Lease:
    taken = store.begin(created(store, **body), Tier.EDGE, worker)
    assert taken is not None
    return taken.lease


def verified(store: RequestStore, worker: str = "c1") -> Lease:
    lease = held(store)
    assert store.escalate(lease, a_draft(), [])
    taken = store.begin(lease.request_id, Tier.CLOUD, worker)
    assert taken is not None
    return taken.lease


def kinds(redis: Redis, request_id: str) -> list[EventKind]:
    return [streamed.event.type for streamed in EventHub(redis).read(request_id)]


def jobs(redis: Redis, tier: Tier) -> list[str]:
    return [job.args[0] for job in queue(redis, tier).get_jobs()]


# The way of a request


@pytest.mark.parametrize(
    ("policy", "tier", "state"), [("baseline", Tier.EDGE, "queued"), ("cloud_only", Tier.CLOUD, "escalated")]
)
def test_a_new_request_waits_for_the_first_tier_of_its_policy_with_a_job_on_that_queue(
    store, redis_connection, policy, tier, state
):
    request = a_request(policy=policy)
    store.create(request)
    record = store.read(request.request_id)
    assert (record.state, record.attempt, record.request) == (state, 0, request)
    assert (record.draft, record.result, record.failure) == (None, None, None)
    assert jobs(redis_connection, tier) == [request.request_id]
    assert kinds(redis_connection, request.request_id) == [EventKind.QUEUED]
    assert store.counters() == {"accepted": 1}


def test_a_job_holds_a_name_from_the_table_and_the_id_and_nothing_else(store, redis_connection):
    request_id = created(store)
    (job,) = queue(redis_connection, Tier.EDGE).get_jobs()
    assert (job.func_name, job.args, job.kwargs, job.instance) == (FUNCTION_NAMES[Tier.EDGE], [request_id], {}, None)
    assert job.description == FUNCTION_NAMES[Tier.EDGE]


def test_an_id_that_is_taken_keeps_its_record(store):
    request = a_request()
    store.create(request)
    store.create(request.model_copy(update={"accepted_at_s": 99.0}))
    assert store.read(request.request_id).request == request


def test_where_the_job_cannot_be_stored_neither_is_the_record(store, redis_connection):
    redis_connection.config_set("maxmemory", 1)
    request = a_request()
    try:
        with pytest.raises(OutOfMemoryError):
            store.create(request)
    finally:
        redis_connection.config_set("maxmemory", 0)
    assert store.read(request.request_id) is None
    assert list(redis_connection.scan_iter("rq:job:*")) == []
    assert jobs(redis_connection, Tier.EDGE) == []


def test_a_record_that_was_left_without_its_job_gets_one(store, redis_connection, make_due, reaper):
    queue_key = queue(redis_connection, Tier.EDGE).key
    redis_connection.set(queue_key, "no list")
    request = a_request()
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        store.create(request)
    redis_connection.delete(queue_key)
    make_due(request.request_id)
    assert reaper.reap() == [request.request_id]


def test_a_sure_draft_ends_the_request_with_its_answer(store, redis_connection):
    lease = held(store)
    assert store.append(lease, [DraftText(position=0, text="bec")])
    assert store.succeed(lease, a_result(), [DraftText(position=3, text="ause")])
    record = store.read(lease.request_id)
    assert (record.state, record.result) == (State.SUCCEEDED, a_result())
    assert kinds(redis_connection, lease.request_id) == ["queued", "draft", "draft", "done"]
    assert store.counters() == {"accepted": 1, "answered_edge": 1}
    assert redis_connection.zscore(keys.leases(), lease.request_id) is None


def test_an_unsure_draft_goes_on_to_the_cloud_with_its_draft(store, redis_connection):
    lease = held(store)
    assert store.escalate(lease, a_draft(), [])
    assert store.state(lease.request_id) == State.ESCALATED
    assert jobs(redis_connection, Tier.CLOUD) == [lease.request_id]
    taken = store.begin(lease.request_id, Tier.CLOUD, "c1")
    assert taken.draft == a_draft()
    assert taken.lease.attempt == lease.attempt + 1
    assert min(taken.age_s, taken.queued_s, taken.drafting_s, taken.verify_queued_s) >= 0
    assert store.succeed(taken.lease, a_result(tier=Tier.CLOUD), [])
    assert store.counters() == {"accepted": 1, "escalated": 1, "answered_cloud": 1}
    assert kinds(redis_connection, lease.request_id) == ["queued", "queued", "done"]


def test_a_failure_is_kept_as_data(store):
    lease = held(store)
    assert store.fail(lease, FAILURE)
    record = store.read(lease.request_id)
    assert (record.state, record.failure, record.result) == (State.FAILED, FAILURE, None)


def test_what_does_not_exist_is_none(store):
    assert store.read("nobody") is None
    assert store.state("nobody") is None
    assert store.begin("nobody", Tier.EDGE, "w1") is None
    assert not store.cancel("nobody")
    assert store.counters() == {}


# Fences


def test_only_one_worker_takes_a_request_up(store):
    request_id = created(store)
    assert store.begin(request_id, Tier.EDGE, "w1") is not None
    assert store.begin(request_id, Tier.EDGE, "w2") is None


def test_a_request_is_not_taken_up_by_a_tier_that_it_does_not_wait_for(store):
    assert store.begin(created(store), Tier.CLOUD, "c1") is None
    assert store.begin(created(store, policy="cloud_only"), Tier.EDGE, "w1") is None


def every_commit(store: RequestStore, lease: Lease) -> list[bool]:
    return [
        store.append(lease, [DraftText(position=0, text="late")]),
        store.escalate(lease, a_draft(), []),
        store.succeed(lease, a_result(), []),
        store.fail(lease, FAILURE),
        store.hand_back(lease),
    ]


def test_commits_of_an_earlier_attempt_are_refused_and_counted(store, redis_connection):
    first = held(store)
    assert store.hand_back(first)
    second = store.begin(first.request_id, Tier.EDGE, "w2").lease
    before = redis_connection.hgetall(keys.request(first.request_id))
    assert every_commit(store, first) == [False] * 5
    assert redis_connection.hgetall(keys.request(first.request_id)) == before
    assert store.counters()["stale_commits"] == 4
    assert store.succeed(second, a_result(), [])


def test_a_cancelled_request_refuses_every_commit(store, redis_connection):
    lease = held(store)
    assert store.cancel(lease.request_id)
    assert every_commit(store, lease) == [False] * 5
    assert store.state(lease.request_id) == State.CANCELLED
    assert kinds(redis_connection, lease.request_id)[-1] == EventKind.CANCELLED
    assert store.begin(lease.request_id, Tier.EDGE, "w2") is None


@pytest.mark.parametrize("end", ["succeed", "fail", "cancel"])
def test_a_finished_request_stays_as_it_is(store, redis_connection, end):
    lease = held(store)
    ends = {
        "succeed": lambda: store.succeed(lease, a_result(), []),
        "fail": lambda: store.fail(lease, FAILURE),
        "cancel": lambda: store.cancel(lease.request_id),
    }
    assert ends[end]()
    before = redis_connection.hgetall(keys.request(lease.request_id))
    assert not any(other() for other in ends.values())
    assert store.state(lease.request_id) in FINISHED
    assert redis_connection.hgetall(keys.request(lease.request_id)) == before


def test_of_many_that_race_to_finish_a_request_exactly_one_wins(store, redis_connection):
    for _ in range(5):
        lease = held(store)
        start, won = threading.Barrier(16), []

        def finish(place: int, lease=lease, start=start, won=won) -> None:
            start.wait(10)
            ends = [
                lambda: store.succeed(lease, a_result(), []),
                lambda: store.fail(lease, FAILURE),
                lambda: store.cancel(lease.request_id),
                lambda: store.escalate(lease, a_draft(), []),
            ]
            if ends[place % 4]():
                won.append(place % 4)

        threads = [threading.Thread(target=finish, args=(place,)) for place in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            joined(thread)
        ends = [place for place in won if place != 3]
        assert len(ends) == 1
        told = [kind for kind in kinds(redis_connection, lease.request_id) if kind in {"done", "failed", "cancelled"}]
        assert len(told) == 1


# Leases


def test_a_lapsed_lease_is_taken_over_and_the_zombies_commit_refused(redis_connection, reaper):
    store = RequestStore(redis_connection, Lifetimes(60, 600, 0.2, 3))
    zombie = held(store, "zombie")
    assert until(reaper.reap, "the lapsed request is pushed again") == [zombie.request_id]
    assert store.state(zombie.request_id) == State.QUEUED
    taken = store.begin(zombie.request_id, Tier.EDGE, "living")
    assert taken.lease.attempt == 2
    assert not store.succeed(zombie, a_result("a zombie's"), [])
    assert store.succeed(taken.lease, a_result("the living's"), [])
    assert store.read(zombie.request_id).result.text == "the living's"
    assert store.counters()["taken_over"] == 1


def test_a_renewed_lease_does_not_lapse(store, make_due, reaper):
    lease = held(store)
    make_due(lease.request_id)
    assert store.renew([lease]) == []
    assert reaper.reap() == []
    assert store.state(lease.request_id) == State.DRAFTING


def test_renewing_tells_which_holds_are_lost_and_leaves_their_leases_alone(store, redis_connection, make_due, reaper):
    mine, cancelled, lapsed = held(store), held(store), held(store)
    store.cancel(cancelled.request_id)
    make_due(lapsed.request_id)
    assert reaper.reap() == [lapsed.request_id]
    other = store.begin(lapsed.request_id, Tier.EDGE, "w2").lease
    make_due(lapsed.request_id)
    assert store.renew([mine, cancelled, lapsed]) == [cancelled, lapsed]
    assert redis_connection.zscore(keys.leases(), lapsed.request_id) == 1.0
    assert redis_connection.zscore(keys.leases(), cancelled.request_id) is None
    assert store.renew([other]) == []


def test_after_too_many_lapses_a_request_fails_for_good_with_its_history(store, redis_connection, make_due, reaper):
    request_id = created(store)
    for attempt in range(1, 4):
        assert store.begin(request_id, Tier.EDGE, f"w{attempt}").lease.attempt == attempt
        make_due(request_id)
        assert reaper.reap() == ([request_id] if attempt < 3 else [])
    record = store.read(request_id)
    assert record.state == State.FAILED
    assert (record.failure.kind, record.failure.tier) == (FailureKind.ATTEMPTS_EXHAUSTED, Tier.EDGE)
    assert "3 attempts" in record.failure.message
    told = [(lost.attempt, lost.tier, lost.worker) for lost in record.failure.attempts]
    assert told == [(1, Tier.EDGE, "w1"), (2, Tier.EDGE, "w2"), (3, Tier.EDGE, "w3")]
    assert all("lease" in lost.reason and lost.lost_at_s > 0 for lost in record.failure.attempts)
    assert store.counters()["taken_over"] == 2
    assert kinds(redis_connection, request_id)[-1] == EventKind.FAILED


def test_surrendering_counts_as_a_crash_and_handing_back_does_not(store):
    lease = held(store)
    assert store.hand_back(lease)
    for _ in range(5):
        assert store.hand_back(store.begin(lease.request_id, Tier.EDGE, "w").lease)
    for _ in range(2):
        store.surrender(store.begin(lease.request_id, Tier.EDGE, "w").lease, "it broke")
    assert store.state(lease.request_id) == State.QUEUED
    store.surrender(store.begin(lease.request_id, Tier.EDGE, "w").lease, "it broke")
    assert store.read(lease.request_id).failure.kind == FailureKind.ATTEMPTS_EXHAUSTED


def test_a_cloud_workers_lapse_goes_back_to_the_cloud_with_the_draft(store, redis_connection, make_due, reaper):
    lease = verified(store)
    queue(redis_connection, Tier.CLOUD).empty()
    make_due(lease.request_id)
    assert reaper.reap() == [lease.request_id]
    assert store.state(lease.request_id) == State.ESCALATED
    assert jobs(redis_connection, Tier.CLOUD) == [lease.request_id]
    assert store.begin(lease.request_id, Tier.CLOUD, "c2").draft == a_draft()


def test_what_is_handed_back_is_the_next_to_be_taken(store, redis_connection):
    lease = held(store)
    queue(redis_connection, Tier.EDGE).empty()
    other = created(store)
    assert store.hand_back(lease)
    assert jobs(redis_connection, Tier.EDGE) == [lease.request_id, other]


# The reaper


def test_a_waiting_request_whose_job_is_gone_is_pushed_again(store, redis_connection, make_due, reaper):
    request_id = created(store)
    queue(redis_connection, Tier.EDGE).empty()
    make_due(request_id)
    assert reaper.reap() == [request_id]
    assert jobs(redis_connection, Tier.EDGE) == [request_id]
    assert store.begin(request_id, Tier.EDGE, "w1") is not None


def test_a_waiting_request_whose_job_is_queued_is_left_alone(store, redis_connection, make_due, reaper):
    request_id = created(store)
    make_due(request_id)
    assert reaper.reap() == []
    assert jobs(redis_connection, Tier.EDGE) == [request_id]


def test_an_escalated_request_whose_job_was_never_pushed_is_pushed(store, redis_connection, make_due, reaper):
    lease = held(store)
    store.escalate(lease, a_draft(), [])
    queue(redis_connection, Tier.CLOUD).empty()
    make_due(lease.request_id)
    assert reaper.reap() == [lease.request_id]
    assert jobs(redis_connection, Tier.CLOUD) == [lease.request_id]


def test_nothing_is_due_before_its_time(store, reaper):
    created(store)
    held(store)
    assert reaper.reap() == []


def test_of_many_reapers_one_has_each_request(store, make_due, reaper):
    holds = [held(store) for _ in range(20)]
    for lease in holds:
        make_due(lease.request_id)
    pushed, start = [], threading.Barrier(8)

    def reap() -> None:
        start.wait(10)
        pushed.extend(reaper.reap())

    threads = [threading.Thread(target=reap) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        joined(thread)
    assert sorted(pushed) == sorted(lease.request_id for lease in holds)


def test_a_request_whose_record_has_expired_is_forgotten(store, redis_connection, make_due, reaper):
    request_id = created(store)
    make_due(request_id)
    redis_connection.delete(keys.request(request_id))
    assert reaper.reap() == []
    assert redis_connection.zcard(keys.leases()) == 0


# Lifetimes and secrets


def test_record_and_stream_live_for_the_configured_time_before_and_after_the_end(store, redis_connection):
    lease = held(store)
    names = [keys.request(lease.request_id), keys.events(lease.request_id)]
    assert store.append(lease, [DraftText(position=0, text="b")])
    assert all(590 < redis_connection.ttl(name) <= 600 for name in names)
    assert store.succeed(lease, a_result(), [])
    assert all(50 < redis_connection.ttl(name) <= 60 for name in names)


def test_every_key_that_is_written_has_a_lifetime_or_goes_with_its_last_member(store, redis_connection):
    store.succeed(verified(store), a_result(), [])
    store.cancel(created(store))
    last = held(store)
    lasting = {name.decode() for name in redis_connection.scan_iter("*") if redis_connection.ttl(name) == -1}
    queues = {"rq:queues", *(f"rq:queue:{name}" for name in QUEUE_NAMES.values())}
    of_the_unfinished = {keys.leases(), keys.charges(), keys.load()}
    assert lasting == of_the_unfinished | (lasting & queues)
    store.cancel(last.request_id)
    assert {name for name in lasting if redis_connection.exists(name)} <= queues


def everything_of_rq(redis: Redis) -> bytes:
    return b"".join(name + (redis.dump(name) or b"") for name in redis.scan_iter("rq:*"))


def test_nothing_of_the_prompt_is_in_any_key_of_rq(store, redis_connection):
    config = redis_connection.config_get("rdbcompression")
    redis_connection.config_set("rdbcompression", "no")
    try:
        lease = held(store, prompt=SECRET)
        store.escalate(lease, a_draft(SECRET), [])
        created(store, prompt=SECRET)
        raw = everything_of_rq(redis_connection)
        assert lease.request_id.encode() in raw
        assert SECRET.encode() not in raw
        assert SECRET.encode() in redis_connection.dump(keys.request(lease.request_id))
    finally:
        redis_connection.config_set("rdbcompression", config["rdbcompression"])


def test_waiting_jobs_are_counted_for_each_tier(store):
    created(store)
    created(store)
    created(store, policy="cloud_only")
    assert store.waiting() == {"edge": 2, "cloud": 1}


def test_pushing_a_job_twice_leaves_one_record_that_is_taken_once(store, redis_connection):
    request_id = created(store)
    JobQueues(redis_connection, 600).push(request_id, Tier.EDGE, 0)
    assert store.begin(request_id, Tier.EDGE, "w1") is not None
    assert store.begin(request_id, Tier.EDGE, "w2") is None
