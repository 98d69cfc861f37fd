import threading

import pytest
from redis import Redis
from redis.exceptions import OutOfMemoryError

from broker import keys
from broker.event_streams import EventHub
from broker.leases import Lease, Lifetimes
from broker.presence import Presence
from broker.request_store import EXPIRED_AT_ONCE, RequestStore
from broker.rq_transport import FUNCTION_NAMES, QUEUE_NAMES, queue
from broker.states import FINISHED, State
from schemas.events import DraftText, EventKind
from schemas.policy import Tier
from schemas.results import Failure, FailureKind
from tests.polling import joined, until
from tests.samples import a_draft, a_request, a_result, a_worker_report
from tests.taking import take_one

FAILURE = Failure(kind=FailureKind.ENGINE_ERROR, tier=Tier.EDGE, message="it broke")
SECRET = "xyzzy-plugh"  # a word that must turn up in no key of RQ


def created(store: RequestStore, **body: object) -> str:
    request = a_request(**body)
    store.create(request)
    return request.request_id


def held(store: RequestStore, worker: str = "w1", **body: object) -> Lease:
    created(store, **body)
    taken = take_one(store, Tier.EDGE, worker)
    assert taken is not None
    return taken.lease


def verified(store: RequestStore, worker: str = "c1") -> Lease:
    lease = held(store)
    assert store.escalate(lease, a_draft(), [])
    taken = take_one(store, Tier.CLOUD, worker)
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


@pytest.mark.parametrize("name", ["rq:queue:edge", "rq:wip:edge", "rq:queues"])
def test_whatever_somebody_put_in_place_of_what_rq_shows_a_request_is_made_taken_and_answered(
    store, redis_connection, name
):
    redis_connection.set(name, "something else")
    lease = held(store)
    assert store.succeed(lease, a_result(), [])


def test_a_sure_draft_ends_the_request_with_its_answer(store, redis_connection):
    lease = held(store)
    assert store.append(lease, [DraftText(position=0, text="bec")])
    assert store.succeed(lease, a_result(), [DraftText(position=3, text="ause")])
    record = store.read(lease.request_id)
    assert (record.state, record.result) == (State.SUCCEEDED, a_result())
    assert kinds(redis_connection, lease.request_id) == ["queued", "draft", "draft", "done"]
    assert store.counters() == {"accepted": 1, "answered_edge": 1}
    assert redis_connection.zscore(keys.due(), lease.request_id) is None


def test_an_unsure_draft_goes_on_to_the_cloud_with_its_draft(store, redis_connection):
    lease = held(store)
    assert store.escalate(lease, a_draft(), [])
    assert store.state(lease.request_id) == State.ESCALATED
    assert jobs(redis_connection, Tier.CLOUD) == [lease.request_id]
    taken = take_one(store, Tier.CLOUD, "c1")
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
    assert take_one(store, Tier.EDGE, "w1") is None
    assert not store.cancel("nobody")
    assert store.counters() == {}


# Fences


def test_only_one_worker_takes_a_request_up(store):
    created(store)
    assert take_one(store, Tier.EDGE, "w1") is not None
    assert take_one(store, Tier.EDGE, "w2") is None


def test_a_request_is_not_taken_up_by_a_tier_that_it_does_not_wait_for(store):
    created(store)
    assert take_one(store, Tier.CLOUD, "c1") is None
    assert take_one(store, Tier.EDGE, "w1") is not None
    created(store, policy="cloud_only")
    assert take_one(store, Tier.EDGE, "w1") is None


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
    second = take_one(store, Tier.EDGE, "w2").lease
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
    assert take_one(store, Tier.EDGE, "w2") is None


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


def test_a_lapsed_lease_is_taken_over_and_the_zombies_commit_refused(redis_connection, expire):
    store = RequestStore(redis_connection, Lifetimes(60, 0.2, 3))
    zombie = held(store, "zombie")
    assert until(expire, "the lapsed request is pushed again") == [zombie.request_id]
    assert store.state(zombie.request_id) == State.QUEUED
    taken = take_one(store, Tier.EDGE, "living")
    assert taken.lease.attempt == 2
    assert not store.succeed(zombie, a_result("a zombie's"), [])
    assert store.succeed(taken.lease, a_result("the living's"), [])
    assert store.read(zombie.request_id).result.text == "the living's"
    assert store.counters()["taken_over"] == 1


def test_a_renewed_lease_does_not_lapse(store, make_due, expire):
    lease = held(store)
    make_due(lease.request_id)
    assert store.renew([lease]) == []
    assert expire() == []
    assert store.state(lease.request_id) == State.DRAFTING


def test_renewing_tells_which_leases_are_lost_and_leaves_their_leases_alone(store, redis_connection, make_due, expire):
    mine, cancelled, lapsed = held(store), held(store), held(store)
    store.cancel(cancelled.request_id)
    make_due(lapsed.request_id)
    assert expire() == [lapsed.request_id]
    other = take_one(store, Tier.EDGE, "w2").lease
    make_due(lapsed.request_id)
    assert store.renew([mine, cancelled, lapsed]) == [cancelled, lapsed]
    assert redis_connection.zscore(keys.due(), lapsed.request_id) == 1.0
    assert redis_connection.zscore(keys.due(), cancelled.request_id) is None
    assert store.renew([other]) == []


def test_after_too_many_lapses_a_request_fails_for_good_with_its_history(store, redis_connection, make_due, expire):
    request_id = created(store)
    for attempt in range(1, 4):
        assert take_one(store, Tier.EDGE, f"w{attempt}").lease.attempt == attempt
        make_due(request_id)
        assert expire() == ([request_id] if attempt < 3 else [])
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
        assert store.hand_back(take_one(store, Tier.EDGE, "w").lease)
    for _ in range(2):
        store.surrender(take_one(store, Tier.EDGE, "w").lease, "it broke")
    assert store.state(lease.request_id) == State.QUEUED
    store.surrender(take_one(store, Tier.EDGE, "w").lease, "it broke")
    assert store.read(lease.request_id).failure.kind == FailureKind.ATTEMPTS_EXHAUSTED


def test_a_cloud_workers_lapse_goes_back_to_the_cloud_with_the_draft(store, redis_connection, make_due, expire):
    lease = verified(store)
    make_due(lease.request_id)
    assert expire() == [lease.request_id]
    assert store.state(lease.request_id) == State.ESCALATED
    assert jobs(redis_connection, Tier.CLOUD) == [lease.request_id]
    assert take_one(store, Tier.CLOUD, "c2").draft == a_draft()


def test_what_is_handed_back_is_the_next_to_be_taken(store, redis_connection):
    lease = held(store)
    other = created(store)
    assert store.hand_back(lease)
    assert jobs(redis_connection, Tier.EDGE) == [lease.request_id, other]


# What is due


def test_a_waiting_request_whose_job_is_gone_from_rq_is_taken_all_the_same(store, redis_connection):
    request_id = created(store)
    queue(redis_connection, Tier.EDGE).empty()
    assert take_one(store, Tier.EDGE, "w1").lease.request_id == request_id


def test_a_waiting_request_that_is_looked_at_too_early_waits_on_until_its_deadline(
    store, redis_connection, make_due, expire
):
    request_id = created(store)
    deadline = redis_connection.zscore(keys.due(), request_id)
    make_due(request_id)
    assert expire() == []
    assert redis_connection.zscore(keys.due(), request_id) == deadline
    assert jobs(redis_connection, Tier.EDGE) == [request_id]


def test_many_deadlines_that_pass_at_once_are_all_acted_on_in_one_look(store, redis_connection, expire):
    ids = [created(store) for _ in range(EXPIRED_AT_ONCE * 2 + 5)]
    lapsed = held(store)
    for request_id in ids:
        redis_connection.hset(keys.request(request_id), "deadline_at", 1)
    redis_connection.zadd(keys.due(), dict.fromkeys([*ids, lapsed.request_id], 1.0))
    assert len(expire()) == 1
    assert redis_connection.zcard(keys.due()) == 1
    assert redis_connection.zcard(keys.line("edge")) == 1
    assert len(jobs(redis_connection, Tier.EDGE)) == 1


def test_nothing_is_due_before_its_time(store, expire):
    created(store)
    held(store)
    assert expire() == []


def test_of_many_processes_that_look_one_has_each_request(store, make_due, expire):
    leases = [held(store) for _ in range(20)]
    for lease in leases:
        make_due(lease.request_id)
    pushed, start = [], threading.Barrier(8)

    def reap() -> None:
        start.wait(10)
        pushed.extend(expire())

    threads = [threading.Thread(target=reap) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        joined(thread)
    assert sorted(pushed) == sorted(lease.request_id for lease in leases)


def test_a_request_whose_record_somebody_deleted_is_forgotten(store, redis_connection, make_due, expire):
    request_id = created(store)
    make_due(request_id)
    redis_connection.delete(keys.request(request_id))
    assert expire() == []
    assert redis_connection.zcard(keys.due()) == 0


def test_what_is_left_of_a_request_whose_record_somebody_deleted_is_removed_when_it_is_due(
    store, redis_connection, make_due, expire
):
    request_id = created(store)
    redis_connection.delete(keys.request(request_id))
    make_due(request_id)
    assert expire() == []
    assert take_one(store, Tier.EDGE, "w1") is None
    assert 3000 < redis_connection.ttl(keys.load()) <= 3600
    assert store.survey([a_request()], Tier.EDGE, []).load.requests == 0
    left = {name.decode() for name in redis_connection.scan_iter("*")}
    assert left <= {"rq:queues", keys.load(), keys.counters()}


def test_while_redis_is_full_leases_are_renewed_and_what_is_due_is_acted_on(store, redis_connection, make_due, expire):
    renewed, lapsed = held(store), held(store)
    late = created(store)
    make_due(lapsed.request_id)
    redis_connection.hset(keys.request(late), "deadline_at", 1)
    redis_connection.zadd(keys.due(), {late: 2.0})
    redis_connection.config_set("maxmemory", 1)
    try:
        assert store.renew([renewed]) == []
        assert expire() == [lapsed.request_id]
        assert Presence(redis_connection, 10.0).renew(a_worker_report("w1")) == {}
    finally:
        redis_connection.config_set("maxmemory", 0)
    assert store.state(late) == State.FAILED


@pytest.mark.parametrize(
    ("name", "garbage"),
    [
        (keys.load(), {"requests": "abc", "rate": "inf", "tokens:anonymous": "nan"}),
        (keys.counters(), {"accepted": "x"}),
    ],
)
def test_whatever_is_in_sums_and_counters_requests_are_made_taken_and_answered(store, redis_connection, name, garbage):
    redis_connection.hset(name, mapping=garbage)
    assert store.survey([a_request()], Tier.EDGE, ["w1@a"]).load.drained_tokens_per_s == 0
    assert store.succeed(held(store), a_result(), [])


# Lifetimes and secrets


def test_record_and_stream_live_until_the_end_and_for_the_configured_time_after_it(store, redis_connection):
    lease = held(store)
    names = [keys.request(lease.request_id), keys.events(lease.request_id)]
    assert store.append(lease, [DraftText(position=0, text="b")])
    assert all(redis_connection.ttl(name) == -1 for name in names), "its deadline ends it, not its expiry"
    assert store.succeed(lease, a_result(), [])
    assert all(50 < redis_connection.ttl(name) <= 60 for name in names)


def test_every_key_that_is_written_has_a_lifetime_or_goes_with_its_last_member(store, redis_connection):
    store.succeed(verified(store), a_result(), [])
    store.cancel(created(store))
    last = held(store)
    lasting = {name.decode() for name in redis_connection.scan_iter("*") if redis_connection.ttl(name) == -1}
    queues = {"rq:queues", *(f"rq:queue:{name}" for name in QUEUE_NAMES.values())}
    jobs_of_rq = {"rq:wip:edge", f"rq:job:{last.request_id}-edge"}
    of_the_last = {keys.request(last.request_id), keys.events(last.request_id)}
    assert lasting - queues == {keys.due(), keys.load(), *of_the_last, *jobs_of_rq}
    store.cancel(last.request_id)
    assert {name.decode() for name in redis_connection.scan_iter("*") if redis_connection.ttl(name) == -1} <= queues


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


def test_rq_shows_one_job_for_each_request_that_waits_and_each_that_is_worked_on(store, redis_connection):
    edge = queue(redis_connection, Tier.EDGE)
    first, second = created(store), created(store)
    lease = take_one(store, Tier.EDGE, "w1").lease
    assert (lease.request_id, jobs(redis_connection, Tier.EDGE)) == (first, [second])
    assert edge.started_job_registry.get_job_ids() == [f"{first}-edge"]
    assert edge.fetch_job(f"{first}-edge").get_status() == "started"
    assert store.hand_back(lease)
    assert (jobs(redis_connection, Tier.EDGE), edge.started_job_registry.count) == ([first, second], 0)
    store.cancel(second)
    lease = take_one(store, Tier.EDGE, "w1").lease
    store.escalate(lease, a_draft(), [])
    assert (jobs(redis_connection, Tier.EDGE), edge.started_job_registry.count) == ([], 0)
    assert jobs(redis_connection, Tier.CLOUD) == [first]
    store.succeed(take_one(store, Tier.CLOUD, "c1").lease, a_result(), [])
    assert list(redis_connection.scan_iter("rq:job:*")) == []


def test_as_many_requests_are_taken_at_once_as_there_is_room_for_in_their_order(store):
    ids = [created(store) for _ in range(5)]
    taken = store.take(Tier.EDGE, "w1", room=3).requests
    assert [leased.lease.request_id for leased in taken] == ids[:3]
    assert [leased.lease.request_id for leased in store.take(Tier.EDGE, "w1", room=3).requests] == ids[3:]
