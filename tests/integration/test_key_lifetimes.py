"""Every key of ours has the lifetime that broker/keys.py says, whatever expires between any two steps."""

import re

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule, run_state_machine_as_test
from redis import Redis

from broker import keys
from broker.batches import BatchStore, TooManyBatches
from broker.idempotency import Idempotency, IdempotencyKeys
from broker.leases import Lease, Lifetimes
from broker.outbox import Outbox
from broker.prefix_index import PrefixIndex
from broker.presence import Presence
from broker.reaper import Reaper
from broker.request_store import MustBeAlone, RequestStore
from broker.run_queues import RunQueues, own_queue
from broker.scripts import OWNERS_BETWEEN_SWEEPS
from schemas.events import DraftText
from schemas.openai_files import Batch
from schemas.owners import Owner
from schemas.policy import Tier
from schemas.requests import AcceptedRequest
from schemas.results import Failure, FailureKind
from tests.samples import a_draft, a_request, a_result, a_worker_report

LIFETIMES = Lifetimes(result_ttl_s=60, unfinished_ttl_s=600, lease_s=10.0, max_attempts=2)
PERMANENT = [
    re.compile(re.sub(r"\\{\w+\\}", ".*", re.escape(described.pattern)))
    for described in keys.DESCRIPTIONS
    if described.permanent
]
#: What holds one entry for each request that has not finished, or whose webhook is not delivered.
BY_REQUEST = [keys.leases(), keys.waiting(), keys.charges(), keys.load(), keys.outbox(), *map(keys.line, Tier)]
#: Workers' queues, of which one has no lease.
QUEUES = {tier: [own_queue(tier, "w1@a"), own_queue(tier, "w2@b")] for tier in Tier}
REQUESTS = {policy: a_request(policy=policy) for policy in ("baseline", "cloud_only")}
BLOCKS = [b"block-1", b"block-2", b"block-3"]

tiers, owners, places = st.sampled_from(Tier), st.sampled_from(["alice", "bob"]), st.integers(0, 1)


def is_permanent(key: str) -> bool:
    return any(pattern.fullmatch(key) for pattern in PERMANENT)


class Keys(RuleBasedStateMachine):
    """Whatever gateways and workers do to Redis, in any order, while keys expire at any moment."""

    requests, holds, batches = Bundle("requests"), Bundle("holds"), Bundle("batches")

    def __init__(self, redis: Redis) -> None:
        super().__init__()
        redis.flushall()
        self.redis = redis
        self.store, self.outbox, self.batch_store = RequestStore(redis, LIFETIMES), Outbox(redis), BatchStore(redis)
        self.reaper = Reaper(redis, self.store, LIFETIMES)
        self.queues = {tier: RunQueues(redis, tier) for tier in Tier}
        self.index, self.presence = PrefixIndex(redis, 60), Presence(redis, 10.0)
        self.idempotency_keys = IdempotencyKeys(redis)
        self.num_made = 0

    def a_request(self, policy: str = "baseline") -> AcceptedRequest:
        """A request whose id is the same whenever the same steps are taken."""
        self.num_made += 1
        return REQUESTS[policy].model_copy(update={"request_id": f"request-{self.num_made}"})

    @rule(target=requests, owner=owners, webhook=st.booleans(), policy=st.sampled_from(sorted(REQUESTS)))
    def submit(self, owner: str, webhook: bool, policy: str) -> str:
        url = "https://example.org/" if webhook else None
        return self.store.create(self.a_request(policy).model_copy(update={"owner": owner, "webhook": url}))

    @rule(owner=owners, number=places)
    def submit_twice(self, owner: str, number: int) -> None:
        key = Idempotency(owner, f"key-{number}", "digest")
        self.store.create_all([(self.a_request(), None), (self.a_request(), None)], key)
        self.idempotency_keys.claim(key, "other")

    @rule(target=holds, request_id=requests, tier=tiers, alone=st.booleans())
    def begin(self, request_id: str, tier: Tier, alone: bool) -> object:
        try:
            taken = self.store.begin(request_id, tier, "w1", alone=alone)
        except MustBeAlone:
            return multiple()
        return multiple() if taken is None else taken.lease

    @rule(lease=holds)
    def append(self, lease: Lease) -> None:
        self.store.append(lease, [DraftText(position=0, text="x")])

    @rule(lease=holds)
    def escalate(self, lease: Lease) -> None:
        if lease.tier == Tier.EDGE:
            self.store.escalate(lease, a_draft(), [])

    @rule(lease=holds)
    def succeed(self, lease: Lease) -> None:
        self.store.succeed(lease, a_result(), [])

    @rule(lease=holds)
    def fail(self, lease: Lease) -> None:
        self.store.fail(lease, Failure(kind=FailureKind.PROMPT_TOO_LONG, tier=lease.tier, message="x"))

    @rule(lease=holds)
    def hand_back(self, lease: Lease) -> None:
        self.store.hand_back(lease)

    @rule(lease=holds)
    def surrender(self, lease: Lease) -> None:
        self.store.surrender(lease, "x")

    @rule(lease=holds)
    def renew(self, lease: Lease) -> None:
        self.store.renew([lease])

    @rule(request_id=requests)
    def cancel(self, request_id: str) -> None:
        self.store.cancel(request_id)

    @rule(request_id=requests)
    def delete(self, request_id: str) -> None:
        self.store.delete(request_id)

    @rule()
    def reap(self) -> None:
        for times in (keys.leases(), keys.waiting()):
            for member in self.redis.zrange(times, 0, -1):
                self.redis.zadd(times, {member: 1.0}, xx=True)
        self.reaper.reap()

    @rule(request_id=requests, delivered=st.booleans())
    def call_webhook(self, request_id: str, delivered: bool) -> None:
        self.outbox.take()
        if delivered:
            self.outbox.done(request_id)
        else:
            self.outbox.count_try(request_id)
            self.outbox.try_again({request_id: 5.0})

    @rule(target=batches, owner=owners, keyed=st.booleans())
    def make_batch(self, owner: str, keyed: bool) -> object:
        self.num_made += 1
        seconds = int(self.redis.time()[0])
        batch = Batch(
            id=f"batch_{self.num_made}",
            endpoint="/v1/jobs",
            input_file_id="file-1",
            completion_window="24h",
            created_at=seconds,
            expires_at=seconds + 86_400,
            owner=Owner(name=owner),
        )
        try:
            self.batch_store.create(batch, 3, Idempotency(owner, "batch", "digest") if keyed else None)
        except TooManyBatches:
            return multiple()
        return batch

    @rule(batch=batches, status=st.sampled_from(["in_progress", "completed"]))
    def write_batch(self, batch: Batch, status: str) -> None:
        if self.batch_store.read(batch.id) is not None:  # whoever runs it has just read it
            self.batch_store.write(batch.model_copy(update={"status": status}))

    @rule(batch=batches)
    def cancel_batch(self, batch: Batch) -> None:
        self.batch_store.ask_to_cancel(batch.id, 1.0)

    @rule()
    def look_for_batches(self) -> None:
        self.batch_store.drop_expired(self.batch_store.unfinished())
        self.batch_store.tidy(float(self.redis.time()[0]))

    @rule(tier=tiers, job=places, tokens=st.integers(0, 5), front=st.booleans())
    def push(self, tier: Tier, job: int, tokens: int, front: bool) -> None:
        self.queues[tier].push(f"job-{job}", "w1@a", tokens, at_front=front)

    @rule(tier=tiers, source=places, newest=st.booleans())
    def steal(self, tier: Tier, source: int, newest: bool) -> None:
        ours = QUEUES[tier]
        self.queues[tier].move(ours[source], ours[1 - source], 2, newest=newest)

    @rule(tier=tiers, job=places)
    def close_job(self, tier: Tier, job: int) -> None:
        self.queues[tier].done(f"job-{job}")

    @rule(tier=tiers)
    def look_around(self, tier: Tier) -> None:
        self.queues[tier].survey(QUEUES[tier][0])
        self.queues[tier].bury(QUEUES[tier][1])

    @rule(held=st.sets(st.sampled_from(BLOCKS)), gone=st.sets(st.sampled_from(BLOCKS)))
    def publish_prefixes(self, held: set[bytes], gone: set[bytes]) -> None:
        self.index.update("w1@a", held, gone)
        self.index.expect("w2@b", BLOCKS[:2])
        self.index.sweep(lambda: ["w1@a"])

    @rule()
    def report(self) -> None:
        self.presence.renew(a_worker_report("w1"))

    @rule()
    def count(self) -> None:
        self.store.count("x")

    @rule(data=st.data())
    def a_key_expires(self, data: st.DataObject) -> None:
        passing = [key for key in self._keys() if not is_permanent(key)]
        if passing:
            self.redis.delete(data.draw(st.sampled_from(passing)))

    @invariant()
    def every_key_has_its_lifetime(self) -> None:
        found = self._keys()
        with self.redis.pipeline(transaction=False) as pipeline:
            for key in found:
                pipeline.pttl(key)
            left_ms = pipeline.execute()
        endless = [key for key, ms in zip(found, left_ms, strict=True) if ms == -1 and not is_permanent(key)]
        assert endless == []

    def teardown(self) -> None:
        """When everything has expired that can, nothing of any request is left."""
        for key in self._keys():
            if not is_permanent(key):
                self.redis.delete(key)
        self.reap()
        for due in self.outbox.take():
            self.outbox.done(due.request_id)
        for member in self.redis.zrange(keys.outbox(), 0, -1):
            self.outbox.done(member.decode())
        left = {key: self.redis.type(key) for key in BY_REQUEST if self.redis.exists(key)}
        assert left == {}

    def _keys(self) -> list[str]:
        return sorted(key.decode() for key in self.redis.scan_iter(f"{keys.PREFIX}*", count=1000))


def test_no_key_outlives_what_it_is_about_whatever_expires_meanwhile(redis_connection):
    run_state_machine_as_test(
        lambda: Keys(redis_connection),
        settings=settings(
            max_examples=40,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
            phases=set(Phase) - {Phase.explain},
        ),
    )


@pytest.mark.parametrize(
    "go_on",
    [
        lambda store, lease: store.append(lease, [DraftText(position=0, text="x")]),
        lambda store, lease: store.escalate(lease, a_draft(), []),
        lambda store, lease: store.hand_back(lease),
    ],
    ids=["append", "escalate", "hand_back"],
)
def test_a_stream_that_expired_before_its_record_ends_with_it_when_it_goes_on(redis_connection, store, go_on):
    request_id = store.create(a_request())
    lease = store.begin(request_id, Tier.EDGE, "w1").lease
    redis_connection.delete(keys.events(request_id))
    go_on(store, lease)
    of_record, of_stream = (redis_connection.pttl(key) for key in (keys.request(request_id), keys.events(request_id)))
    assert of_record - 1000 < of_stream <= of_record


def test_a_job_that_goes_back_to_those_that_gave_way_does_not_make_their_list_last(redis_connection, store):
    last_try, other = store.create(a_request()), store.create(a_request())
    for _ in range(2):
        store.surrender(store.begin(last_try, Tier.EDGE, "w1").lease, "x")
    assert store.begin(other, Tier.EDGE, "w1")
    redis_connection.rpush(keys.displaced(Tier.EDGE), last_try)
    redis_connection.expire(keys.displaced(Tier.EDGE), 60)
    with pytest.raises(MustBeAlone):
        store.begin(other, Tier.EDGE, "w2", alone=False)
    assert redis_connection.lrange(keys.displaced(Tier.EDGE), 0, -1) == [last_try.encode()]
    assert redis_connection.ttl(keys.displaced(Tier.EDGE)) > 0


def test_owners_that_the_line_has_passed_leave_no_tag_behind(redis_connection, store):
    request = a_request()
    for number in range(OWNERS_BETWEEN_SWEEPS + 200):
        for owner in ("always", f"once-{number}"):
            request_id = f"{owner}-{number}"
            store.create(request.model_copy(update={"owner": owner, "request_id": request_id}))
            assert store.begin(request_id, Tier.EDGE, "w1")
    assert redis_connection.hlen(keys.virtual_time(Tier.EDGE)) < 210, "only those since the sweep are left"
