"""What the store promises about requests beyond their way: idempotency, deadlines, quarantine, load, fair turns."""

import threading

import pytest

from broker import keys
from broker.idempotency import Idempotency, IdempotencyConflict
from broker.leases import Lifetimes
from broker.reaper import Reaper
from broker.request_store import MustBeAlone, RequestStore
from broker.rq_transport import queue
from broker.scripts import FAIRNESS_SLACK_TOKENS
from broker.states import State
from schemas.events import EventKind
from schemas.policy import Tier
from schemas.requests import AcceptedRequest
from schemas.results import FailureKind
from tests.polling import joined
from tests.samples import a_draft, a_request, a_result


def of(owner: str, weight: float = 1.0, prompt: str = "why is the sky blue", **body: object) -> AcceptedRequest:
    return a_request(prompt, **body).model_copy(update={"owner": owner, "weight": weight})


def poisoned(store: RequestStore, request: AcceptedRequest) -> None:
    """Lose as many workers over the request as it takes."""
    store.create(request)
    for place in range(3):
        store.surrender(store.begin(request.request_id, Tier.EDGE, f"w{place}").lease, "its engine died")


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
    request_id = store.create(of("someone", deadline_s=60))
    assert 50 < store.begin(request_id, Tier.EDGE, "w1").remaining_s <= 60


def test_a_waiting_request_fails_at_its_deadline(store, redis_connection, make_due, reaper):
    request_id = store.create(of("someone", deadline_s=30))
    assert redis_connection.zscore(keys.waiting(), request_id) < redis_connection.time()[0] + 16
    redis_connection.hset(keys.request(request_id), "deadline_at", 1)
    make_due(request_id)
    assert reaper.reap() == []
    record = store.read(request_id)
    assert (record.state, record.failure.kind) == (State.FAILED, FailureKind.DEADLINE_EXCEEDED)
    assert store.counters()["failed"] == 1


def test_a_waiting_request_is_looked_at_when_its_deadline_comes(store, redis_connection):
    request_id = store.create(of("someone", deadline_s=2))
    deadline = float(redis_connection.hget(keys.request(request_id), "deadline_at"))
    assert redis_connection.zscore(keys.waiting(), request_id) == pytest.approx(deadline, abs=0.01)


# Quarantine and last attempts


def test_a_prompt_that_ended_every_worker_is_quarantined_for_a_while(store, redis_connection):
    request = of("someone", prompt="poison")
    poisoned(store, request)
    failure = store.read(request.request_id).failure
    assert failure.kind == FailureKind.ATTEMPTS_EXHAUSTED
    assert failure.message.endswith("because its engine died")
    again = of("someone", prompt="poison", policy="cloud_only")
    assert store.quarantined(again) == request.request_id
    assert store.quarantined(of("someone", prompt="bread")) is None
    assert store.quarantined(of("someone", prompt="poison", logit_bias={"7": 1.0})) is None
    assert store.quarantined(of("another", prompt="poison")) is None, "no owner's request shuts out another's"
    assert 86_000 < redis_connection.ttl(keys.quarantine("someone", again.prompt_digest)) <= 86_400


def test_a_prompt_whose_last_attempt_was_lost_beside_others_is_not_quarantined(redis_connection):
    # Where there is one attempt, it is never made alone.
    store = RequestStore(redis_connection, Lifetimes(60, 600, 10.0, max_attempts=1))
    request = of("someone", prompt="bystander")
    store.create(request)
    store.surrender(store.begin(request.request_id, Tier.EDGE, "w1", alone=False).lease, "its engine died")
    failure = store.read(request.request_id).failure
    assert [lost.alone for lost in failure.attempts] == [False]
    assert store.quarantined(request) is None


def test_after_a_lost_attempt_the_next_begins_alone_and_the_last_is_alone_throughout(store):
    request_id = store.create(of("someone"))
    first = store.begin(request_id, Tier.EDGE, "w0", alone=False)
    assert (first.num_lost, first.alone) == (0, False)
    store.surrender(first.lease, "it died")
    for num_lost in (1, 2):
        with pytest.raises(MustBeAlone):
            store.begin(request_id, Tier.EDGE, f"w{num_lost}", alone=False)
        assert store.state(request_id) == State.QUEUED
        taken = store.begin(request_id, Tier.EDGE, f"w{num_lost}", alone=True)
        assert (taken.lease.attempt, taken.num_lost, taken.alone) == (num_lost + 1, num_lost, num_lost == 2)
        store.surrender(taken.lease, "it died")
    assert [lost.alone for lost in store.read(request_id).failure.attempts] == [False, False, True]


def test_a_draft_survives_the_loss_of_its_verifier_and_the_history_names_both_tiers(store):
    request_id = store.create(of("someone"))
    store.surrender(store.begin(request_id, Tier.EDGE, "e1").lease, "it died")
    assert store.escalate(store.begin(request_id, Tier.EDGE, "e2").lease, a_draft(), [])
    for place in range(2):
        taken = store.begin(request_id, Tier.CLOUD, f"c{place}")
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
    store.succeed(store.begin(request_id, Tier.EDGE, "w1").lease, a_result(), [])
    redis_connection.delete(keys.request(request_id))
    assert store.read(request_id) is None
    assert store.owner_of_gone(request_id) == "someone"
    assert store.owner_of_gone("nobody") is None
    assert redis_connection.ttl(keys.gone(request_id)) > 86_000


# Load


def test_the_load_is_what_is_unfinished_and_drains_as_requests_end(store, redis_connection):
    ids = [store.create(of(owner, max_tokens=100, prompt="abcd" * 25)) for owner in ("one", "one", "two")]
    load = store.load("one")
    assert (load.requests, load.tokens, load.owner_requests, load.owner_tokens) == (3, 375, 2, 250)
    assert load.drained_tokens_per_s == 0
    store.cancel(ids[0])
    store.succeed(store.begin(ids[1], Tier.EDGE, "w1").lease, a_result(), [])
    load = store.load("one")
    assert (load.requests, load.tokens, load.owner_requests, load.owner_tokens) == (1, 125, 0, 0)
    assert load.drained_tokens_per_s > 0
    store.cancel(ids[2])
    assert store.load("two").requests == 0
    assert redis_connection.exists(keys.load(), keys.charges()) == 0


def test_the_load_of_a_record_that_expired_is_released(store, redis_connection, make_due, reaper):
    request_id = store.create(of("someone"))
    redis_connection.delete(keys.request(request_id))
    make_due(request_id)
    reaper.reap()
    assert store.load("someone").requests == 0
    assert redis_connection.exists(keys.waiting(), keys.line(Tier.EDGE), keys.charges()) == 0


# Turns


def taken_in_order(store: RequestStore, jobs: list[str]) -> list[str]:
    """Owners of what workers take up when they take the jobs in this order."""
    taken = [store.begin(job, Tier.EDGE, "w1") for job in jobs]
    return [one.request.owner for one in taken if one is not None]


def test_one_owner_alone_keeps_the_order_of_the_jobs(store):
    jobs = [store.create(of("one", max_tokens=4000)) for _ in range(6)]
    shuffled = [jobs[place] for place in (3, 0, 5, 1, 2, 4)]
    assert [store.begin(job, Tier.EDGE, "w1").lease.request_id for job in shuffled] == shuffled


def test_an_owner_who_comes_late_does_not_wait_for_anothers_flood(store):
    cost = FAIRNESS_SLACK_TOKENS
    flood = [store.create(of("flood", max_tokens=cost)) for _ in range(20)]
    late = [store.create(of("late", max_tokens=cost)) for _ in range(3)]
    order = taken_in_order(store, [*flood, *late])
    assert sorted(order) == ["flood"] * 20 + ["late"] * 3
    assert order.index("late") <= 3
    assert order[:9].count("late") == 3


def test_weights_are_shares(store):
    cost = 4 * FAIRNESS_SLACK_TOKENS
    light = [store.create(of("light", 1.0, max_tokens=cost)) for _ in range(20)]
    heavy = [store.create(of("heavy", 3.0, max_tokens=cost)) for _ in range(20)]
    order = taken_in_order(store, [*light, *heavy])
    assert 13 <= order[:20].count("heavy") <= 16


def test_every_request_is_taken_once_whoever_gives_way_to_whom(store):
    owners = [["a", "b", "c"][place % 3 if place > 30 else 0] for place in range(60)]
    jobs = [store.create(of(owner, max_tokens=1 + 500 * (place % 7))) for place, owner in enumerate(owners)]
    ids = [store.begin(job, Tier.EDGE, "w1").lease.request_id for job in jobs]
    assert sorted(ids) == sorted(jobs)


def test_who_gave_way_and_was_cancelled_is_not_taken_up(store):
    cost = FAIRNESS_SLACK_TOKENS
    flood = [store.create(of("flood", max_tokens=cost)) for _ in range(6)]
    late = store.create(of("late", max_tokens=cost))
    taken = [store.begin(job, Tier.EDGE, "w1").lease.request_id for job in flood]
    assert late in taken
    (displaced,) = set(flood) - set(taken)
    store.cancel(displaced)
    assert store.begin(late, Tier.EDGE, "w1") is None


def test_a_displaced_request_whose_spare_job_is_lost_gets_a_job_again(store, make_due, reaper):
    cost = FAIRNESS_SLACK_TOKENS
    flood = [store.create(of("flood", max_tokens=cost)) for _ in range(6)]
    store.create(of("late", max_tokens=cost))
    taken = [store.begin(job, Tier.EDGE, "w1").lease.request_id for job in flood]
    (displaced,) = set(flood) - set(taken)
    store._redis.delete(queue(store._redis, Tier.EDGE).key)
    make_due(displaced)
    assert reaper.reap() == [displaced]
    assert store.begin(displaced, Tier.EDGE, "w1") is not None


def test_a_takeover_keeps_the_requests_turn(redis_connection):
    lifetimes = Lifetimes(60, 600, 10.0, 3)
    store = RequestStore(redis_connection, lifetimes)
    first = store.create(of("one"))
    tag = redis_connection.zscore(keys.line(Tier.EDGE), first)
    store.create(of("one"))
    store.surrender(store.begin(first, Tier.EDGE, "w1").lease, "it died")
    assert redis_connection.zscore(keys.line(Tier.EDGE), first) == tag
    assert Reaper(redis_connection, store, lifetimes).reap() == []


def test_an_end_is_told_once_however_it_came(store, redis_connection):
    request = of("someone", prompt="poison")
    poisoned(store, request)
    entries = redis_connection.xrange(keys.events(request.request_id))
    ends = {EventKind.DONE, EventKind.FAILED, EventKind.CANCELLED}
    assert sum(any(end.encode() in fields[b"event"] for end in ends) for _, fields in entries) == 1
