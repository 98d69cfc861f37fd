"""What the store promises about requests beyond their way: idempotency, deadlines, quarantine, load, fair turns."""

import threading

import pytest

from broker import keys
from broker.backpressure import Load
from broker.idempotency import Idempotency, IdempotencyConflict
from broker.leases import Lifetimes
from broker.presence import Presence
from broker.request_store import RequestStore
from broker.rq_transport import queue
from broker.scripts import FAIRNESS_SLACK_TOKENS
from broker.states import State
from schemas.events import EventKind
from schemas.policy import Tier
from schemas.requests import AcceptedRequest
from schemas.results import FailureKind
from schemas.routing_decision import RoutingDecision, RoutingReason
from tests.polling import joined
from tests.samples import a_draft, a_request, a_result, a_worker_report
from tests.taking import quarantined, take_one


def of(owner: str, weight: float = 1.0, prompt: str = "why is the sky blue", **body: object) -> AcceptedRequest:
    return a_request(prompt, **body).model_copy(update={"owner": owner, "weight": weight})


def load_of(store: RequestStore, owner: str) -> Load:
    return store.survey([of(owner)], Tier.EDGE, []).load


def poisoned(store: RequestStore, request: AcceptedRequest) -> None:
    """Lose as many workers over the request as it takes."""
    store.create(request)
    for place in range(3):
        store.surrender(take_one(store, Tier.EDGE, f"w{place}").lease, "its engine died")


# Idempotency


def test_the_same_key_and_body_give_the_same_request_and_one_job(store, redis_connection):
    key = Idempotency("someone", "order-7", "digest")
    first = store.create(of("someone"), key)
    assert store.create(of("someone"), key) == first
    assert queue(redis_connection, Tier.EDGE).count == 1
    assert store.counters() == {"accepted": 1}


def test_the_same_key_with_another_body_is_refused_and_stores_nothing(store):
    store.create(of("someone"), Idempotency("someone", "order-7", "digest"))
    with pytest.raises(IdempotencyConflict):
        store.create(of("someone"), Idempotency("someone", "order-7", "another"))
    assert store.counters() == {"accepted": 1}


def test_owners_do_not_share_their_keys(store):
    ids = {store.create(of(owner), Idempotency(owner, "order-7", "digest")) for owner in ("one", "two")}
    assert len(ids) == 2


def test_a_key_that_comes_many_times_at_once_makes_one_request(store):
    start, ids = threading.Barrier(8), []

    def submit() -> None:
        start.wait(10)
        ids.append(store.create(of("someone"), Idempotency("someone", "order-7", "digest")))

    threads = [threading.Thread(target=submit) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        joined(thread)
    assert len(ids) == 8
    assert len(set(ids)) == 1
    assert store.counters() == {"accepted": 1}


def test_a_key_is_kept_for_a_day_and_says_nothing_of_what_it_was(store, redis_connection):
    key = Idempotency("someone", "a secret word", "digest")
    store.create(of("someone"), key)
    assert 86_000 < redis_connection.ttl(key.redis_key) <= 86_400
    assert "secret" not in key.redis_key


# Deadlines


def test_a_request_is_taken_up_with_what_is_left_until_its_deadline(store):
    store.create(of("someone", deadline_s=60))
    assert 50 < take_one(store, Tier.EDGE, "w1").remaining_s <= 60


def test_a_waiting_request_fails_at_its_deadline(store, redis_connection, make_due, expire):
    request_id = store.create(of("someone", deadline_s=30))
    redis_connection.hset(keys.request(request_id), "deadline_at", 1)
    make_due(request_id)
    assert expire() == []
    record = store.read(request_id)
    assert (record.state, record.failure.kind) == (State.FAILED, FailureKind.DEADLINE_EXCEEDED)
    assert store.counters()["failed"] == 1


def test_a_waiting_request_is_due_when_its_deadline_comes(store, redis_connection):
    request_id = store.create(of("someone", deadline_s=2))
    deadline = float(redis_connection.hget(keys.request(request_id), "deadline_at"))
    assert redis_connection.zscore(keys.due(), request_id) == pytest.approx(deadline, abs=0.01)


# Quarantine and last attempts


def test_a_prompt_that_ended_every_worker_is_quarantined_for_a_while(store, redis_connection):
    request = of("someone", prompt="poison")
    poisoned(store, request)
    failure = store.read(request.request_id).failure
    assert failure.kind == FailureKind.ATTEMPTS_EXHAUSTED
    assert failure.message.endswith("because its engine died")
    again = of("someone", prompt="poison", policy="cloud_only")
    assert quarantined(store, again) == request.request_id
    assert quarantined(store, of("someone", prompt="bread")) is None
    assert quarantined(store, of("someone", prompt="poison", logit_bias={"7": 1.0})) is None
    assert quarantined(store, of("another", prompt="poison")) is None, "no owner's request shuts out another's"
    assert 86_000 < redis_connection.ttl(keys.quarantine("someone", again.prompt_digest)) <= 86_400


def test_a_prompt_whose_last_attempt_was_lost_beside_others_is_not_quarantined(redis_connection):
    # Where there is one attempt, it is never made alone.
    store = RequestStore(redis_connection, Lifetimes(60, 10.0, max_attempts=1))
    request = of("someone", prompt="bystander")
    store.create(request)
    store.surrender(take_one(store, Tier.EDGE, "w1", busy=True).lease, "its engine died")
    failure = store.read(request.request_id).failure
    assert [lost.alone for lost in failure.attempts] == [False]
    assert quarantined(store, request) is None


def test_after_a_lost_attempt_the_next_begins_alone_and_the_last_is_alone_throughout(store):
    request_id = store.create(of("someone"))
    first = take_one(store, Tier.EDGE, "w0", busy=True)
    assert (first.num_lost, first.alone) == (0, False)
    store.surrender(first.lease, "it died")
    for num_lost in (1, 2):
        taken = store.take(Tier.EDGE, f"w{num_lost}", busy=True)
        assert (taken.requests, taken.must_empty) == ([], True)
        assert store.state(request_id) == State.QUEUED
        taken = take_one(store, Tier.EDGE, f"w{num_lost}")
        assert (taken.lease.attempt, taken.num_lost, taken.alone) == (num_lost + 1, num_lost, num_lost == 2)
        store.surrender(taken.lease, "it died")
    assert [lost.alone for lost in store.read(request_id).failure.attempts] == [False, False, True]


def test_a_draft_survives_the_loss_of_its_verifier_and_the_history_names_both_tiers(store):
    request_id = store.create(of("someone"))
    store.surrender(take_one(store, Tier.EDGE, "e1").lease, "it died")
    assert store.escalate(take_one(store, Tier.EDGE, "e2").lease, a_draft(), [])
    for place in range(2):
        taken = take_one(store, Tier.CLOUD, f"c{place}")
        assert taken.draft == a_draft()
        store.surrender(taken.lease, "it died")
    failure = store.read(request_id).failure
    assert [(lost.tier, lost.worker) for lost in failure.attempts] == [
        (Tier.EDGE, "e1"),
        (Tier.CLOUD, "c0"),
        (Tier.CLOUD, "c1"),
    ]


# After the end


def test_a_result_that_has_expired_is_remembered_as_gone_with_its_owner(store, redis_connection):
    request_id = store.create(of("someone"))
    store.succeed(take_one(store, Tier.EDGE, "w1").lease, a_result(), [])
    redis_connection.delete(keys.request(request_id))
    assert store.read(request_id) is None
    assert store.is_gone(request_id)
    assert store.seen_by(lambda owner: owner == "someone").is_gone(request_id)
    assert not store.seen_by(lambda owner: owner == "another").is_gone(request_id)
    assert not store.is_gone("nobody")
    assert redis_connection.ttl(keys.gone(request_id)) > 86_000


# Load


def test_the_load_is_what_is_unfinished_and_drains_as_requests_end(store, redis_connection):
    ids = [store.create(of(owner, max_tokens=100, prompt="abcd" * 25)) for owner in ("one", "one", "two")]
    load = load_of(store, "one")
    assert (load.requests, load.tokens, load.owner_requests, load.owner_tokens) == (3, 375, 2, 250)
    assert load.drained_tokens_per_s == 0
    store.cancel(ids[0])
    store.succeed(take_one(store, Tier.EDGE, "w1").lease, a_result(), [])
    load = load_of(store, "two")
    assert (load.requests, load.tokens, load.owner_requests, load.owner_tokens) == (1, 125, 0, 0)
    assert load.drained_tokens_per_s > 0
    store.cancel(ids[1])
    assert load_of(store, "one").requests == 0
    assert 3000 < redis_connection.ttl(keys.load()) <= 3600


# Turns


def taken_in_order(store: RequestStore) -> list[str]:
    """Owners of what a worker takes, one after the other."""
    owners = []
    while (taken := take_one(store, Tier.EDGE, "w1")) is not None:
        owners.append(taken.request.owner)
    return owners


def test_one_owner_alone_keeps_the_order_of_submission(store):
    ids = [store.create(of("one", max_tokens=1 + 997 * (place % 5))) for place in range(6)]
    assert [take_one(store, Tier.EDGE, "w1").lease.request_id for _ in ids] == ids


def test_an_owner_who_comes_late_does_not_wait_for_anothers_flood(store):
    for _ in range(20):
        store.create(of("flood", max_tokens=100))
    for _ in range(3):
        take_one(store, Tier.EDGE, "w1")
    for _ in range(3):
        store.create(of("late", max_tokens=100))
    order = taken_in_order(store)
    assert sorted(order) == ["flood"] * 17 + ["late"] * 3
    assert order.index("late") <= 1
    assert order[:6].count("late") == 3


def test_weights_are_shares(store):
    for _ in range(20):
        store.create(of("light", 1.0, max_tokens=1000))
    for _ in range(20):
        store.create(of("heavy", 3.0, max_tokens=1000))
    order = taken_in_order(store)
    assert 14 <= order[:20].count("heavy") <= 16


def test_every_request_is_taken_once_whoever_comes_before_whom(store):
    owners = [["a", "b", "c"][place % 3 if place > 30 else 0] for place in range(60)]
    ids = [store.create(of(owner, max_tokens=1 + 500 * (place % 7))) for place, owner in enumerate(owners)]
    taken = store.take(Tier.EDGE, "w1", room=100).requests
    assert sorted(leased.lease.request_id for leased in taken) == sorted(ids)


def alive(redis, *workers: str) -> None:
    redis.zadd(keys.workers(Tier.EDGE), dict.fromkeys(workers, redis.time()[0] + 60))


def routed_to(worker: str, work_tokens: int = 10) -> RoutingDecision:
    return RoutingDecision(worker=worker, reason=RoutingReason.LEAST_LOADED, prompt_tokens=5, work_tokens=work_tokens)


def test_a_worker_takes_its_own_line_first_unless_the_shared_one_is_far_ahead(store, redis_connection):
    alive(redis_connection, "w1@a")
    for _ in range(2):
        store.create(of("one", max_tokens=10), route=routed_to("w1@a"))
    shared = store.create(of("two", max_tokens=10))
    assert take_one(store, Tier.EDGE, "w1@a").request.owner == "one"
    assert take_one(store, Tier.EDGE, "w1@a").request.owner == "one", "within the slack, what is cached there counts"
    assert take_one(store, Tier.EDGE, "w1@a").lease.request_id == shared
    for _ in range(2):
        store.create(of("one", max_tokens=2 * FAIRNESS_SLACK_TOKENS), route=routed_to("w1@a"))
    late = store.create(of("late", max_tokens=10))
    assert take_one(store, Tier.EDGE, "w1@a").request.owner == "one"
    assert take_one(store, Tier.EDGE, "w1@a").lease.request_id == late


def test_an_idle_worker_takes_half_of_the_difference_from_the_longest_line_the_newest_first(store, redis_connection):
    alive(redis_connection, "w1@a", "w2@a", "w3@a")
    ids = [store.create(of("one"), route=routed_to("w1@a")) for _ in range(5)]
    store.create(of("one"), route=routed_to("w2@a"))
    stolen = store.take(Tier.EDGE, "w3@a", room=16)
    assert [leased.lease.request_id for leased in stolen.requests] == [ids[4], ids[3]]
    assert store.worker_loads(Tier.EDGE, ["w1@a", "w3@a"])["w3@a"].num_jobs == 2
    assert store.worker_loads(Tier.EDGE, ["w1@a", "w3@a"])["w1@a"].tokens == 30
    again = store.take(Tier.EDGE, "w3@a", room=16)
    assert (again.requests, again.others_wait) == ([], True), "a difference of one is not worth it"


@pytest.mark.parametrize(
    ("sent", "room", "num_taken"),
    [
        ((6, 10, 0), 16, 6),
        ((6, 10, 0), 4, 4),
        ((6, 4, 4), 16, 3),
        ((1, 4, 4), 1, 0),
        ((2, 0, 0), 16, 1),
        ((0, 6, 0), 16, 0),
    ],
)
def test_how_many_an_idle_worker_takes_from_another(store, redis_connection, sent, room, num_taken):
    waiting, in_hand, own = sent
    alive(redis_connection, "busy@a", "idle@a")
    for worker, number in (("busy@a", in_hand), ("idle@a", own)):
        for _ in range(number):
            store.create(of("one"), route=routed_to(worker))
        assert len(store.take(Tier.EDGE, worker, room=16).requests) == number
    for _ in range(waiting):
        store.create(of("one"), route=routed_to("busy@a"))
    assert len(store.take(Tier.EDGE, "idle@a", room=room, busy=own > 0).requests) == num_taken


def position_of_newcomer(store: RequestStore, redis, line: str) -> int:
    newcomer = store.create(of("new", max_tokens=100), route=routed_to(line))
    return [raw.decode() for raw in redis.zrange(keys.line(f"edge@{line}"), 0, -1)].index(newcomer)


def test_what_is_stolen_from_a_flood_does_not_put_others_behind_it(store, redis_connection):
    alive(redis_connection, "w1@a", "w2@a")
    for _ in range(100):
        store.create(of("flood", max_tokens=100), route=routed_to("w1@a"))
    store.take(Tier.EDGE, "w1@a", room=2)
    assert len(store.take(Tier.EDGE, "w2@a").requests) == 1
    assert position_of_newcomer(store, redis_connection, "w1@a") <= 1


def test_a_flood_that_a_fast_worker_is_through_with_puts_nobody_behind_it_at_a_slow_one(store, redis_connection):
    alive(redis_connection, "slow@a", "fast@a")
    for place in range(200):
        store.create(of("flood", max_tokens=100), route=routed_to(("slow@a", "fast@a")[place % 2]))
    store.take(Tier.EDGE, "slow@a", room=10)
    store.take(Tier.EDGE, "fast@a", room=90)
    assert position_of_newcomer(store, redis_connection, "slow@a") <= 1


def test_nothing_is_let_wait_for_a_worker_that_is_not_alive(store, redis_connection):
    alive(redis_connection, "w1@a")
    lost = store.create(of("one"), route=routed_to("dead@a"))
    assert redis_connection.zscore(keys.line("edge"), lost) is not None
    assert store.waiting()["edge"] == 1
    assert take_one(store, Tier.EDGE, "w1@a").lease.request_id == lost


def test_of_several_that_must_be_alone_each_worker_makes_room_for_one(store, redis_connection):
    alive(redis_connection, "w1@a", "w2@a")
    ids = [store.create(of("one")) for _ in range(2)]
    for lease in [leased.lease for leased in store.take(Tier.EDGE, "w0@a", room=2).requests]:
        store.surrender(lease, "it died")
    assert store.take(Tier.EDGE, "w1@a", room=4, busy=True).must_empty
    assert store.take(Tier.EDGE, "w2@a", room=4, busy=True).must_empty
    first, second = (store.take(Tier.EDGE, worker, room=4) for worker in ("w2@a", "w1@a"))
    assert [leased.lease.request_id for leased in (*first.requests, *second.requests)] == [ids[1], ids[0]]


def test_a_worker_that_counts_as_dead_keeps_no_request_to_itself(store, redis_connection):
    request_id = store.create(of("one"))
    store.surrender(take_one(store, Tier.EDGE, "w0@a").lease, "it died")
    assert store.take(Tier.EDGE, "retired@a", busy=True).must_empty
    assert redis_connection.zscore(keys.line("edge"), request_id) is not None


def test_a_worker_that_was_late_to_report_keeps_the_account_of_what_it_has_in_hand(store, redis_connection):
    presence = Presence(redis_connection, 10.0)
    presence.renew(a_worker_report("w1"))
    for _ in range(10):
        store.create(of("one"), route=routed_to("w1@e1"))
    in_hand = store.take(Tier.EDGE, "w1@e1", room=10).requests
    redis_connection.zadd(keys.workers(Tier.EDGE), {"w1@e1": 1.0})
    presence.renew(a_worker_report("w2"))
    presence.renew(a_worker_report("w1"))
    for _ in range(12):
        store.create(of("one"), route=routed_to("w1@e1"))
    for leased in in_hand:
        store.succeed(leased.lease, a_result(), [])
    assert store.worker_loads(Tier.EDGE, ["w1@e1"])["w1@e1"].num_jobs == 12


def test_two_attempts_of_one_number_after_a_restore_are_told_apart(store, redis_connection):
    store.create(of("one"))
    name = keys.request(store._redis.zrange(keys.line("edge"), 0, 0)[0].decode())
    before = {key: redis_connection.dump(key) for key in (name, keys.line("edge"), keys.due(), keys.load())}
    first = take_one(store, Tier.EDGE, "w1@a").lease
    for key, raw in before.items():
        redis_connection.restore(key, 0, raw, replace=True)
    second = take_one(store, Tier.EDGE, "w1@a").lease
    assert (first.attempt, first.worker) == (second.attempt, second.worker)
    assert first.work_id != second.work_id
    assert store.renew([first, second]) == [first]
    assert not store.append(first, [])
    assert not store.succeed(first, a_result(), [])
    assert store.succeed(second, a_result(), [])


def test_a_request_that_waits_again_keeps_its_turn(store, redis_connection):
    first = store.create(of("one"))
    tag = redis_connection.zscore(keys.line(Tier.EDGE), first)
    store.create(of("one"))
    store.surrender(take_one(store, Tier.EDGE, "w1").lease, "it died")
    assert redis_connection.zscore(keys.line(Tier.EDGE), first) == tag
    assert store.expire() == []


def test_an_end_is_told_once_however_it_came(store, redis_connection):
    request = of("someone", prompt="poison")
    poisoned(store, request)
    entries = redis_connection.xrange(keys.events(request.request_id))
    ends = {EventKind.DONE, EventKind.FAILED, EventKind.CANCELLED}
    assert sum(any(end.encode() in fields[b"event"] for end in ends) for _, fields in entries) == 1
