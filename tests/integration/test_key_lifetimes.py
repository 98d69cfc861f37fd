"""Every key of ours has the lifetime that broker/keys.py says, whatever expires between any two steps."""

import re
from collections import Counter

import hypothesis.strategies as st
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
from broker.request_store import RequestStore
from broker.scripts import FIELDS_BETWEEN_SWEEPS
from broker.states import FINISHED, WAITING, State
from schemas.events import DraftText
from schemas.openai_files import Batch
from schemas.owners import Owner
from schemas.policy import Tier
from schemas.requests import AcceptedRequest
from schemas.results import Failure, FailureKind
from schemas.routing_decision import RoutingDecision, RoutingReason
from tests.samples import a_draft, a_request, a_result, a_worker_report
from tests.taking import take_one

LIFETIMES = Lifetimes(result_ttl_s=60, lease_s=10.0, max_attempts=2)
PERMANENT = [
    re.compile(re.sub(r"\\{\w+\\}", ".*", re.escape(described.pattern)))
    for described in keys.DESCRIPTIONS
    if described.permanent
]
#: What of ours never expires by itself while it is about an unfinished request.
OF_THE_UNFINISHED = (keys.request(""), keys.events(""))
#: Workers' names, of which the first are kept alive.
WORKERS = ["w1@e1", "w2@e1"]
REQUESTS = {policy: a_request(policy=policy) for policy in ("baseline", "cloud_only")}
BLOCKS = [b"block-1", b"block-2", b"block-3"]

tiers, owners, places = st.sampled_from(Tier), st.sampled_from(["alice", "bob"]), st.integers(0, 1)
workers = st.sampled_from(WORKERS)


def is_permanent(key: str) -> bool:
    return any(pattern.fullmatch(key) for pattern in PERMANENT)


class Keys(RuleBasedStateMachine):
    """Whatever gateways and workers do to Redis, in any order, while keys expire at any moment."""

    requests, leases, batches = Bundle("requests"), Bundle("leases"), Bundle("batches")

    def __init__(self, redis: Redis) -> None:
        super().__init__()
        redis.flushall()
        self.redis = redis
        self.store, self.outbox, self.batch_store = RequestStore(redis, LIFETIMES), Outbox(redis), BatchStore(redis)
        self.index, self.presence = PrefixIndex(redis, 60), Presence(redis, 10.0)
        self.idempotency_keys = IdempotencyKeys(redis)
        self.num_made = 0

    def a_request(self, policy: str = "baseline") -> AcceptedRequest:
        """A request whose id is the same whenever the same steps are taken."""
        self.num_made += 1
        return REQUESTS[policy].model_copy(update={"request_id": f"request-{self.num_made}"})

    @rule(
        target=requests,
        owner=owners,
        webhook=st.booleans(),
        policy=st.sampled_from(sorted(REQUESTS)),
        worker=st.none() | workers,
    )
    def submit(self, owner: str, webhook: bool, policy: str, worker: str | None) -> str:
        url = "https://example.org/" if webhook else None
        request = self.a_request(policy).model_copy(update={"owner": owner, "webhook": url})
        route = RoutingDecision(worker=worker, reason=RoutingReason.RANDOM, prompt_tokens=5, work_tokens=7)
        return self.store.create(request, route=route)

    @rule(owner=owners, number=places)
    def submit_twice(self, owner: str, number: int) -> None:
        key = Idempotency(owner, f"key-{number}", "digest")
        self.store.create_all([(self.a_request(), None), (self.a_request(), None)], key)
        self.idempotency_keys.claim(key, "other")

    @rule(target=leases, tier=tiers, worker=workers, room=st.integers(1, 3), busy=st.booleans())
    def take(self, tier: Tier, worker: str, room: int, busy: bool) -> object:
        return multiple(*(leased.lease for leased in self.store.take(tier, worker, room=room, busy=busy).requests))

    @rule(lease=leases)
    def append(self, lease: Lease) -> None:
        self.store.append(lease, [DraftText(position=0, text="x")])

    @rule(lease=leases)
    def escalate(self, lease: Lease) -> None:
        if lease.tier == Tier.EDGE:
            self.store.escalate(lease, a_draft(), [])

    @rule(lease=leases)
    def succeed(self, lease: Lease) -> None:
        self.store.succeed(lease, a_result(), [])

    @rule(lease=leases)
    def fail(self, lease: Lease) -> None:
        self.store.fail(lease, Failure(kind=FailureKind.PROMPT_TOO_LONG, tier=lease.tier, message="x"))

    @rule(lease=leases)
    def hand_back(self, lease: Lease) -> None:
        self.store.hand_back(lease)

    @rule(lease=leases)
    def surrender(self, lease: Lease) -> None:
        self.store.surrender(lease, "x")

    @rule(lease=leases)
    def renew(self, lease: Lease) -> None:
        self.store.renew([lease])

    @rule(request_id=requests)
    def cancel(self, request_id: str) -> None:
        self.store.cancel(request_id)

    @rule(request_id=requests)
    def delete(self, request_id: str) -> None:
        self.store.delete(request_id)

    @rule()
    def expire(self) -> None:
        for member in self.redis.zrange(keys.due(), 0, -1):
            self.redis.zadd(keys.due(), {member: 1.0}, xx=True)
        self.store.expire()

    @rule(request_id=requests)
    def deadline_passes(self, request_id: str) -> None:
        if self.redis.exists(keys.request(request_id)):
            self.redis.hset(keys.request(request_id), "deadline_at", 1)
            self.redis.zadd(keys.due(), {request_id: 1.0}, xx=True)
            self.store.expire()

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

    @rule(held=st.sets(st.sampled_from(BLOCKS)), gone=st.sets(st.sampled_from(BLOCKS)))
    def publish_prefixes(self, held: set[bytes], gone: set[bytes]) -> None:
        self.index.update("w1@a", held, gone)
        self.index.expect("w2@b", BLOCKS[:2])
        self.index.sweep(lambda: ["w1@a"])

    @rule(tier=tiers, worker=workers)
    def live(self, tier: Tier, worker: str) -> None:
        self.presence.renew(a_worker_report(worker.partition("@")[0], tier=tier))

    @rule(tier=tiers, worker=workers)
    def leave(self, tier: Tier, worker: str) -> None:
        self.presence.withdraw(a_worker_report(worker.partition("@")[0], tier=tier))

    @rule(tier=tiers, worker=workers)
    def die(self, tier: Tier, worker: str) -> None:
        self.redis.zadd(keys.workers(tier), {worker: 1.0}, xx=True)

    @rule()
    def count(self) -> None:
        self.store.count("x")

    @rule(data=st.data())
    def a_key_expires(self, data: st.DataObject) -> None:
        passing = [key for key, left_ms in self._lifetimes().items() if left_ms >= 0]
        if passing:
            self.redis.delete(data.draw(st.sampled_from(passing)))

    @invariant()
    def every_key_has_its_lifetime(self) -> None:
        unfinished = set(self._unfinished())
        for key, left_ms in self._lifetimes().items():
            name = next((key.removeprefix(prefix) for prefix in OF_THE_UNFINISHED if key.startswith(prefix)), None)
            if name is not None:
                assert (left_ms == -1) == (name in unfinished), key
            else:
                assert left_ms >= 0 or is_permanent(key), key

    @invariant()
    def whatever_says_where_a_request_is_says_the_same(self) -> None:
        unfinished = self._unfinished()
        waiting = {name: record for name, record in unfinished.items() if record["state"] in WAITING.values()}
        assert set(self._members(keys.due())) == set(unfinished)
        lines = {key: self._members(key) for key in self._keys() if key.startswith(keys.line(""))}
        assert sorted((name, key) for key, names in lines.items() for name in names) == sorted(
            (name, keys.line(record["line"])) for name, record in waiting.items()
        )
        jobs = {f"{name}-{next(t for t in Tier if WAITING[t] == r['state'])}" for name, r in waiting.items()}
        listed = [raw.decode() for queue in ("edge", "verify") for raw in self.redis.lrange(f"rq:queue:{queue}", 0, -1)]
        assert sorted(listed) == sorted(jobs)

    @invariant()
    def the_load_is_the_sum_of_what_is_unfinished(self) -> None:
        sums: Counter[str] = Counter()
        for record in self._unfinished().values():
            sums["requests"] += 1
            sums["tokens"] += int(record["tokens"])
            sums[f"requests:{record['owner']}"] += 1
            sums[f"tokens:{record['owner']}"] += int(record["tokens"])
        load = {field.decode(): float(value) for field, value in self.redis.hgetall(keys.load()).items()}
        told = {field: value for field, value in load.items() if field.split(":")[0] in {"requests", "tokens"}}
        assert told == {field: value for field, value in sums.items() if value}
        for line in ("edge", "cloud"):
            assert load.get(f"jobs:{line}", 0) == self.redis.zcard(keys.line(line))

    def teardown(self) -> None:
        """When every request has finished and everything has expired that can, nothing of any request is left."""
        for request_id in self._unfinished():
            assert self.store.cancel(request_id)
        for key, left_ms in self._lifetimes().items():
            if left_ms >= 0:
                self.redis.delete(key)
        for due in self.outbox.take():
            self.outbox.done(due.request_id)
        for member in self._members(keys.outbox()):
            self.outbox.done(member)
        of_workers = {keys.workers(tier) for tier in Tier} | {keys.unfinished_batches()}
        assert [key for key in self._keys() if is_permanent(key) and key not in of_workers] == []

    def _lifetimes(self) -> dict[str, int]:
        """What is left of each key's life in milliseconds; -1 where it does not expire."""
        found = self._keys()
        with self.redis.pipeline(transaction=False) as pipeline:
            for key in found:
                pipeline.pttl(key)
            return dict(zip(found, pipeline.execute(), strict=True))

    def _unfinished(self) -> dict[str, dict[str, str]]:
        found = {}
        for key in self.redis.scan_iter(keys.request("*"), count=1000):
            fields = ("state", "line", "owner", "tokens")
            values = [value.decode() for value in self.redis.hmget(key, *fields)]
            record = dict(zip(fields, values, strict=True))
            if State(record["state"]) not in FINISHED:
                found[key.decode().removeprefix(keys.request(""))] = record
        return found

    def _members(self, key: str) -> list[str]:
        return [raw.decode() for raw in self.redis.zrange(key, 0, -1)]

    def _keys(self) -> list[str]:
        return sorted(key.decode() for key in self.redis.scan_iter(f"{keys.PREFIX}*", count=1000))


def test_all_that_is_kept_of_requests_agrees_and_none_of_it_outlives_them(redis_connection):
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


def test_owners_that_the_line_has_passed_leave_no_tag_behind(redis_connection, store):
    request = a_request()
    for number in range(FIELDS_BETWEEN_SWEEPS + 200):
        for owner in ("always", f"once-{number}"):
            request_id = f"{owner}-{number}"
            store.create(request.model_copy(update={"owner": owner, "request_id": request_id}))
            store.cancel(take_one(store, Tier.EDGE, "w1").lease.request_id)
    assert redis_connection.hlen(keys.load()) < 250, "only those since the sweep are left"
