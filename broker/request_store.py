"""Request records: made once, moved on by whoever holds them, finished once.

A commit that comes too late (the lease lapsed, the user cancelled) is refused and counted, and changes nothing.
"""

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import cast

from redis import Redis

from broker import keys, scripts, states
from broker.backpressure import Load
from broker.idempotency import IDEMPOTENCY_TTL_S, Idempotency
from broker.leases import Lease, LeasedRequest, Lifetimes, Record, record, route_field, taken
from broker.rq_transport import JobQueues
from broker.states import State
from schemas import wire
from schemas.drafts import Draft
from schemas.events import Cancelled, Done, Event, Failed, Queued
from schemas.policy import Tier
from schemas.requests import AcceptedRequest
from schemas.results import Failure, FailureKind, LostAttempt, LostAttempts, Result
from schemas.routing_decision import RoutingDecision
from schemas.wire import Wire

log = logging.getLogger(__name__)

#: Seconds after which the reaper looks whether a waiting request still has its job on a queue.
WAITING_CHECK_S = 10.0
#: The counter of commits that came too late.
STALE = "stale_commits"
#: Milliseconds to wait for the append-only file to be on disk, where that is asked for.
FSYNC_TIMEOUT_MS = 5_000


class MustBeAlone(Exception):
    """An attempt at the request was lost, so that the next must begin with nothing else in the worker's hands."""


class NotOnDisk(Exception):
    """The append-only file did not reach the disk in time. A request that was just stored has been taken back."""


class RequestStore:
    """Reads and moves request records. Safe to share between threads; every method is one round trip or two."""

    def __init__(self, redis: Redis, lifetimes: Lifetimes, *, fsync: bool = False) -> None:
        self._redis = redis
        self._lifetimes = lifetimes
        self._fsync = fsync
        self._queues = JobQueues(redis, lifetimes.unfinished_ttl_s)
        self._create = redis.register_script(scripts.CREATE)
        self._begin = redis.register_script(scripts.BEGIN)
        self._append = redis.register_script(scripts.APPEND)
        self._commit_script = redis.register_script(scripts.COMMIT)
        self._renew = redis.register_script(scripts.RENEW)

    def create(
        self, request: AcceptedRequest, idempotency: Idempotency | None = None, route: RoutingDecision | None = None
    ) -> str:
        """As `create_all`, for one request."""
        return self.create_all([(request, route)], idempotency)

    def create_all(
        self, requests: Sequence[tuple[AcceptedRequest, RoutingDecision | None]], idempotency: Idempotency | None = None
    ) -> str:
        """Store the requests and put their jobs where the routes of their policies' first tiers say: all or none.

        One transaction, the idempotency key's meaning included. Answers the first one's id, or that of the request
        for which the key stands already; then nothing is stored. Raises `IdempotencyConflict` and, where that is
        asked for, `NotOnDisk`.
        """
        if idempotency is not None and (earlier := self.idempotent(idempotency)):
            return earlier
        ids = [request.request_id for request, _ in requests]
        meaning = ("", "", "") if idempotency is None else _meaning(idempotency, ids[0])
        with self._redis.pipeline(transaction=True) as pipeline:
            pipeline.multi()  # RQ would otherwise call it, too late
            for request, route in requests:
                arguments = [*self._creation(request, route), *meaning]
                self._create(keys=_keys(request.request_id), args=arguments, client=pipeline)
            for request, route in requests:
                tier = request.policy.first_tier
                self._queues.push(request.request_id, tier, attempt=0, route=route, pipeline=pipeline)
            answer = pipeline.execute()[0]
        if isinstance(answer, bytes) and idempotency is not None:
            # It came twice at once, and the jobs just pushed find nothing to do.
            earlier = idempotency.earlier(answer)
            self._wait_for_disk()
            return earlier
        try:
            self._wait_for_disk()
        except NotOnDisk:
            # Unless they have been answered in the meantime; then the key goes on to stand for the answers.
            cancelled = [self.cancel(request_id) for request_id in ids]
            if all(cancelled) and idempotency is not None:
                self._redis.delete(idempotency.redis_key)
            raise
        return ids[0]

    def _creation(self, request: AcceptedRequest, route: RoutingDecision | None) -> list[str | int | float | bytes]:
        """What `scripts.CREATE` is told of the request."""
        tier = request.policy.first_tier
        return [
            request.request_id,
            states.WAITING[tier],
            tier,
            self._lifetimes.unfinished_ttl_s,
            WAITING_CHECK_S,
            wire.encode(request),
            wire.encode(Queued(tier=tier)),
            request.owner,
            request.weight,
            request.num_tokens_at_most,
            request.deadline_s,
            request.webhook or "",
            "" if route is None else wire.encode(route),
        ]

    def idempotent(self, idempotency: Idempotency) -> str | None:
        """The id of the request for which the key stands, or None. Raises `IdempotencyConflict` and `NotOnDisk`."""
        meaning = cast("bytes | None", self._redis.get(idempotency.redis_key))
        if meaning is None:
            return None
        earlier = idempotency.earlier(meaning)
        self._wait_for_disk()  # whoever submitted it first may still be waiting
        return earlier

    def _wait_for_disk(self) -> None:
        """Block until all that was written before is on disk, where that is asked for. Raises `NotOnDisk`."""
        if not self._fsync:
            return
        # A later write that is on disk says that the earlier one is, on whichever connection each was made.
        with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.hincrby(keys.counters(), "fsynced", 1)
            pipeline.expire(keys.counters(), scripts.COUNTERS_TTL_S)
            pipeline.execute_command("WAITAOF", 1, 0, FSYNC_TIMEOUT_MS)  # type: ignore[no-untyped-call]
            on_disk = pipeline.execute(raise_on_error=False)[-1]
        if not isinstance(on_disk, list) or not on_disk[0]:  # the second number is of replicas, which nobody waits for
            raise NotOnDisk(f"the append-only file was not on disk within {FSYNC_TIMEOUT_MS} ms: {on_disk}")

    def read(self, request_id: str) -> Record | None:
        """The record, or None where there is none (any more). Raises `UndecodableMessage`."""
        raw = cast("dict[bytes, bytes]", self._redis.hgetall(keys.request(request_id)))
        return record(request_id, raw) if b"request" in raw else None

    def state(self, request_id: str) -> State | None:
        """The state alone, or None where there is no record. Raises `UndecodableMessage`."""
        raw = cast("bytes | None", self._redis.hget(keys.request(request_id), "state"))
        if raw is None:
            return None
        with wire.reading("state", {b"state": raw}):
            return State(raw.decode())

    def owner(self, request_id: str) -> str | None:
        """Whose it is, or None where there is no record."""
        raw = cast("bytes | None", self._redis.hget(keys.request(request_id), "owner"))
        return None if raw is None else raw.decode()

    def owner_of_gone(self, request_id: str) -> str | None:
        """Whose request it was, where it finished and has expired; None where the id means nothing (any more)."""
        raw = cast("bytes | None", self._redis.get(keys.gone(request_id)))
        return None if raw is None else raw.decode()

    def quarantined(self, request: AcceptedRequest) -> str | None:
        """The id of the same owner's request that a worker died of, with nothing else in its hands; or None."""
        raw = cast("bytes | None", self._redis.get(keys.quarantine(request.owner, request.prompt_digest)))
        return None if raw is None else raw.decode()

    def begin(self, request_id: str, tier: Tier, worker: str, *, alone: bool = True) -> LeasedRequest | None:
        """Take up the waiting request that the job of `request_id` is spent on.

        That is its own, unless another owner's turn has come, or its own was taken up with an earlier job. None where
        nothing waits that the job could be spent on: finished, cancelled, or another tier's. Raises `MustBeAlone`, and
        changes nothing, for a request that has lost an attempt where the worker has others in hand (not `alone`). On
        its last attempt it is noted that it is alone throughout (`LeasedRequest.alone`).
        A record that this version cannot read is an attempt lost: another worker's may.
        """
        arguments: list[str | int | float] = [request_id, tier, states.WAITING[tier], states.WORKING[tier], worker]
        arguments += [self._lifetimes.lease_s, scripts.FAIRNESS_SLACK_TOKENS, "" if alone else 1]
        arguments += [max(1, self._lifetimes.max_attempts - 1)]
        answer = self._begin(keys=_keys(request_id), args=arguments)
        if answer[0] < 0:
            raise MustBeAlone(request_id)
        if not answer[0]:
            return None
        flat = answer[3]
        raw: dict[bytes, bytes] = dict(zip(flat[::2], flat[1::2], strict=True))
        lease = Lease(answer[2].decode(), tier, int(answer[0]), worker)
        try:
            return taken(lease, raw, float(answer[1]))
        except wire.UndecodableMessage as error:
            log.error("record_unreadable request_id=%s error=%s", lease.request_id, error)  # noqa: TRY400 - says it all
            self.surrender(lease, f"its record could not be read: {error}", died=False)
            return None

    def append(self, lease: Lease, events: Sequence[Event]) -> bool:
        """Append to the request's stream. False where the hold is lost: stop working on it."""
        return not self.append_all([(lease, events)])

    def append_all(self, batches: Sequence[tuple[Lease, Sequence[Event]]]) -> list[Lease]:
        """Append to several requests' streams in one round trip. Answers the holds that are lost."""
        pipeline = self._redis.pipeline(transaction=False)
        for lease, events in batches:
            working = states.WORKING[lease.tier]
            arguments: list[str | int | bytes] = [lease.request_id, lease.attempt, working]
            arguments += [wire.encode(event) for event in events]
            self._append(keys=_keys(lease.request_id), args=arguments, client=pipeline)
        held = pipeline.execute()
        return [lease for (lease, _), kept in zip(batches, held, strict=True) if not kept]

    def escalate(
        self, lease: Lease, draft: Draft | None, events: Sequence[Event], route: RoutingDecision | None = None
    ) -> bool:
        """Hand the request to the cloud, with its draft where the edge could write one.

        `events` come before its queueing. False: the hold is lost.
        """
        fields: dict[str, Wire] = {} if draft is None else {"draft": draft}
        if route is not None:
            fields[route_field(Tier.CLOUD)] = route
        moved = self._commit(
            lease.request_id,
            before=[State.DRAFTING],
            after=State.ESCALATED,
            attempt=lease.attempt,
            fields=fields,
            events=[*events, Queued(tier=Tier.CLOUD)],
            counter="escalated",
        )
        if moved:
            self._queues.push(lease.request_id, Tier.CLOUD, lease.attempt, route=route)
        return moved

    def succeed(self, lease: Lease, result: Result, events: Sequence[Event]) -> bool:
        """Finish the request with its answer. `events` come before the final one. False: the hold is lost."""
        return self._commit(
            lease.request_id,
            before=[states.WORKING[lease.tier]],
            after=State.SUCCEEDED,
            attempt=lease.attempt,
            fields={"result": result},
            events=[*events, Done(result=result)],
            counter=f"answered_{lease.tier}",
        )

    def fail(self, lease: Lease, failure: Failure) -> bool:
        """Finish the request without an answer. False where the hold is lost."""
        return self._fail(lease.request_id, states.WORKING[lease.tier], lease.attempt, failure, refusals=STALE)

    def hand_back(self, lease: Lease) -> bool:
        """Put the request back to wait for another worker of its tier. False where the hold is lost."""
        moved = self._commit(
            lease.request_id,
            before=[states.WORKING[lease.tier]],
            after=states.WAITING[lease.tier],
            attempt=lease.attempt,
            fields={},
            events=[Queued(tier=lease.tier)],
            counter="handed_back",
        )
        if moved:
            self._queues.push(lease.request_id, lease.tier, lease.attempt, at_front=True)
        return moved

    def surrender(self, lease: Lease, reason: str, *, died: bool = True) -> None:
        """Give the request up because the engine failed under it: an attempt lost, which counts against it.

        `died` False: it never reached the engine, so that the prompt cannot be to blame.
        """
        if self.take_over(lease.request_id, lease.tier, lease.attempt, reason, died=died):
            self._queues.push(lease.request_id, lease.tier, lease.attempt)

    def cancel(self, request_id: str) -> bool:
        """Finish the request because nobody wants it. False where it had finished, or is not there."""
        return self._commit(
            request_id,
            before=[state for state in State if state not in states.FINISHED],
            after=State.CANCELLED,
            attempt=None,
            fields={},
            events=[Cancelled()],
            counter="cancelled",
        )

    def delete(self, request_id: str) -> None:
        """Forget the request, cancelled first if it has not finished: from then on it is gone. Idempotent."""
        self.cancel(request_id)
        self._redis.delete(*_keys(request_id))

    def renew(self, holds: Iterable[Lease]) -> list[Lease]:
        """Renew the leases of requests in hand. Answers the holds that are lost: stop working on them. Idempotent."""
        asked = list(holds)
        if not asked:
            return []
        arguments: list[str | int | float] = [self._lifetimes.lease_s]
        for lease in asked:
            arguments += [lease.request_id, lease.attempt, states.WORKING[lease.tier]]
        records = [keys.request(lease.request_id) for lease in asked]
        lost = cast("list[int]", self._renew(keys=[keys.leases(), *records], args=arguments))
        return [asked[place] for place in lost]

    def load(self, owner: str) -> Load:
        """What is unfinished, in all and of the owner, and how fast it drains."""
        fields = ["requests", "tokens", f"requests:{owner}", f"tokens:{owner}"]
        with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.hmget(keys.load(), fields)
            pipeline.hmget(keys.drain(), ["tokens_per_s", "at"])
            pipeline.time()
            sums, (rate, at), (now, _) = pipeline.execute()
        faded = math.exp(min(0.0, float(at or now) - now) / scripts.DRAIN_WINDOW_S)
        requests, tokens, owner_requests, owner_tokens = (int(value or 0) for value in sums)
        return Load(requests, tokens, owner_requests, owner_tokens, float(rate or 0) * faded)

    def count(self, what: str) -> None:
        """Count one more of what the counters lease."""
        with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.hincrby(keys.counters(), what, 1)
            pipeline.expire(keys.counters(), scripts.COUNTERS_TTL_S)
            pipeline.execute()

    def counters(self) -> dict[str, int]:
        """What was counted since the deployment began."""
        raw = cast("dict[bytes, bytes]", self._redis.hgetall(keys.counters()))
        return {name.decode(): int(value) for name, value in raw.items()}

    def waiting(self) -> dict[str, int]:
        """Jobs on each tier's queue."""
        return {tier.value: self._queues.length(tier) for tier in Tier}

    def take_over(self, request_id: str, tier: Tier, attempt: int, reason: str, *, died: bool = True) -> bool:
        """Take the request out of the hands of a worker that is lost. Whether it waits again.

        After too many attempts it fails instead, with all of them as its history; if the last was made alone, the
        prompt is quarantined for its owner. False as well where it is not in those hands any more. The caller pushes
        the job.
        """
        fields = ("worker", "lost", "request", "alone")
        raw = cast("list[bytes | None]", self._redis.hmget(keys.request(request_id), *fields))
        worker, lost, request, alone = raw
        if worker is None or request is None:
            return False
        earlier = LostAttempts() if lost is None else wire.decode(LostAttempts, lost)
        latest = LostAttempt(
            attempt=attempt,
            tier=tier,
            worker=worker.decode(),
            reason=reason,
            lost_at_s=self._redis.time()[0],
            alone=died and alone is not None,
        )
        history = LostAttempts(attempts=(*earlier.attempts, latest))
        lost_fields: dict[str, Wire | int] = {"lost": history, "num_lost": len(history.attempts)}
        if len(history.attempts) < self._lifetimes.max_attempts:
            return self._commit(
                request_id,
                before=[states.WORKING[tier]],
                after=states.WAITING[tier],
                attempt=attempt,
                fields=lost_fields,
                events=[],
                counter="taken_over",
                refusals="",
            )
        message = f"{len(history.attempts)} attempts at this request were lost, the last because {reason}"
        kind = FailureKind.ATTEMPTS_EXHAUSTED
        failure = Failure(kind=kind, tier=tier, message=message, attempts=history.attempts)
        failed = self._fail(request_id, states.WORKING[tier], attempt, failure, fields=lost_fields)
        if failed and latest.alone:
            self._quarantine(request_id, request)
        return False

    def _quarantine(self, request_id: str, request: bytes) -> None:
        with suppress(wire.UndecodableMessage):  # then no prompt of it ever reached an engine
            culprit = wire.decode(AcceptedRequest, request)
            name = keys.quarantine(culprit.owner, culprit.prompt_digest)
            self._redis.set(name, request_id, ex=self._lifetimes.quarantine_s)

    def expire(self, request_id: str, tier: Tier, attempt: int) -> bool:
        """Fail a waiting request whose deadline has passed. False where it does not wait any more."""
        failure = deadline_failure(tier, "it waited for a worker")
        return self._fail(request_id, states.WAITING[tier], attempt, failure)

    def _fail(
        self,
        request_id: str,
        before: State,
        attempt: int,
        failure: Failure,
        *,
        fields: Mapping[str, Wire | int] | None = None,
        refusals: str = "",
    ) -> bool:
        return self._commit(
            request_id,
            before=[before],
            after=State.FAILED,
            attempt=attempt,
            fields={"failure": failure, **(fields or {})},
            events=[Failed(failure=failure)],
            counter="failed",
            refusals=refusals,
        )

    def _commit(
        self,
        request_id: str,
        *,
        before: Sequence[State],
        after: State,
        attempt: int | None,
        fields: Mapping[str, Wire | int],
        events: Sequence[Event],
        counter: str,
        refusals: str = STALE,
    ) -> bool:
        for state in before:
            states.check(state, after)
        waits_for = next((tier for tier in Tier if states.WAITING[tier] == after), "")
        arguments: list[str | int | float | bytes] = [request_id, "" if attempt is None else attempt]
        arguments += ["" if attempt is None else refusals, len(before), *before, after, waits_for, WAITING_CHECK_S]
        arguments += [self._lifetimes.result_ttl_s, self._lifetimes.gone_ttl_s, counter, len(fields)]
        for name, message in fields.items():
            arguments += [name, wire.encode(message) if isinstance(message, Wire) else message]
        arguments += [wire.encode(event) for event in events]
        return bool(self._commit_script(keys=_keys(request_id), args=arguments))


def deadline_failure(tier: Tier, meanwhile: str) -> Failure:
    """What a request ends with whose deadline has passed."""
    message = f"the deadline passed while {meanwhile}"
    return Failure(kind=FailureKind.DEADLINE_EXCEEDED, tier=tier, message=message)


def _meaning(idempotency: Idempotency, made_id: str) -> tuple[str, str, int]:
    """What `scripts.CREATE` is told of an idempotency key."""
    return idempotency.redis_key, idempotency.meaning(made_id), IDEMPOTENCY_TTL_S


def _keys(request_id: str) -> list[str]:
    return [keys.request(request_id), keys.events(request_id)]
