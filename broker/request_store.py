"""Requests in Redis: created once, moved from state to state by the worker that has the lease, finished once.

A waiting request is in five structures, which each script (broker/scripts.py) writes together and atomically, so that
they need no reconciliation:

| structure | contains | repaired by |
| --- | --- | --- |
| record (`keys.request`) | everything about the request | nothing: it is the source of truth |
| line (`keys.line`) | which request a worker takes next | TAKE removes requests that do not wait |
| due set (`keys.due`) | when a request needs action | EXPIRE removes requests that have finished |
| load (`keys.load`) | sums, for limits, routing and fair shares | it expires when no request is unfinished |
| job in RQ | that there is work, for `rq info` | workers remove jobs without a waiting request |

A commit that comes too late (after the lease lapsed or the user cancelled) is refused and counted, and changes nothing.
"""

import copy
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

from redis import Redis

from broker import keys, scripts, states
from broker.backpressure import Load
from broker.connection import REDIS_AWAY
from broker.idempotency import IDEMPOTENCY_TTL_S, Idempotency
from broker.leases import Lease, LeasedRequest, Lifetimes, Record, leased, record, route_field
from broker.routing import WorkerLoad
from broker.rq_transport import job_fields
from broker.states import State
from schemas import wire
from schemas.drafts import Draft
from schemas.events import Cancelled, Done, Event, Failed, Queued
from schemas.policy import Tier
from schemas.requests import AcceptedRequest
from schemas.results import Failure, FailureKind, LostAttempt, LostAttempts, Result
from schemas.routing_decision import RoutingDecision
from schemas.wire import UndecodableMessage, Wire

log = logging.getLogger(__name__)

#: The counter of commits that came too late.
STALE = "stale_commits"
#: Milliseconds to wait until the append-only file is on disk, with `requests.durability: fsync`.
FSYNC_TIMEOUT_MS = 5_000
#: The most requests that one run of EXPIRE handles, and seconds for which a process claims those that it must act on.
EXPIRED_AT_ONCE, CLAIM_S = 200, 5.0
#: The reason recorded for an attempt whose lease lapsed.
LAPSED = "its worker did not renew its lease: killed, hung or cut off"
#: Why a request fails that nobody can go on with.
DAMAGED = "its record in Redis is damaged"

#: A script's arguments that describe how a request moves: see `scripts.COMMIT`.
_Move = dict[str, Any]


class NotOnDisk(Exception):
    """The append-only file was not on disk in time. A request that had just been stored has been cancelled."""


@dataclass(frozen=True)
class Survey:
    """Everything in Redis on which accepting and routing requests depends, read in one round trip."""

    load: Load
    #: The load of each requested worker.
    workers: Mapping[str, WorkerLoad]
    #: For each request, the id of the owner's earlier request for which its prompt was quarantined; or None.
    quarantined: Sequence[str | None]
    #: The id of the request to which the idempotency key maps already, or None.
    earlier: str | None


@dataclass(frozen=True)
class Taken:
    """The answer to a worker that asked for work."""

    requests: Sequence[LeasedRequest]
    #: The next request must start alone: the worker has to finish all its requests before it asks again.
    must_empty: bool = False
    #: Requests wait in other workers' lines, but too few to steal any.
    others_wait: bool = False


class RequestStore:
    """Reads and moves requests. Safe on any thread. A method takes one round trip unless it says otherwise."""

    def __init__(self, redis: Redis, lifetimes: Lifetimes, *, fsync: bool = False) -> None:
        self._redis = redis
        self._lifetimes = lifetimes
        self._fsync = fsync
        self._visible: Callable[[str], bool] = lambda _owner: True
        self._scripts = {
            name: redis.register_script(getattr(scripts, name))
            for name in ("CREATE", "TAKE", "APPEND", "COMMIT", "RENEW", "EXPIRE")
        }

    def seen_by(self, visible: Callable[[str], bool]) -> "RequestStore":
        """The same store for a caller who may see only the requests of owners for which `visible` returns True.

        For `read`, `state`, `cancel`, `delete` and `is_gone`, other requests do not exist.
        """
        restricted = copy.copy(self)
        restricted._visible = visible  # noqa: SLF001 - an object of the same class
        return restricted

    # For gateways

    def survey(
        self,
        requests: Sequence[AcceptedRequest],
        tier: Tier,
        workers: Sequence[str],
        idempotency: Idempotency | None = None,
    ) -> Survey:
        """Read what accepting one owner's requests depends on. Raises `IdempotencyConflict`, `NotOnDisk`."""
        owner = requests[0].owner
        fields = ["requests", "tokens", f"requests:{owner}", f"tokens:{owner}", "rate", "rate_at"]
        with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.time()
            pipeline.hmget(keys.load(), [*fields, *_load_fields(tier, workers)])
            pipeline.mget([keys.quarantine(request.owner, request.prompt_digest) for request in requests])
            if workers:
                pipeline.zmscore(keys.workers(tier), list(workers))
            if idempotency is not None:
                pipeline.get(idempotency.redis_key)
            clock, sums, quarantined, *rest = pipeline.execute()
        now_s = clock[0] + clock[1] / 1e6
        alive_until = rest.pop(0) if workers else []
        meaning = rest.pop() if idempotency is not None else None
        return Survey(
            load=_load(sums[:6], now_s),
            workers=_worker_loads(workers, sums[6:], alive_until, now_s),
            quarantined=[None if raw is None else raw.decode() for raw in quarantined],
            earlier=self._earlier(idempotency, meaning),
        )

    def worker_loads(self, tier: Tier, workers: Sequence[str]) -> dict[str, WorkerLoad]:
        """The load of each of these workers of the tier."""
        if not workers:
            return {}
        with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.time()
            pipeline.hmget(keys.load(), _load_fields(tier, workers))
            pipeline.zmscore(keys.workers(tier), list(workers))
            clock, sums, alive_until = pipeline.execute()
        return _worker_loads(workers, sums, alive_until, clock[0] + clock[1] / 1e6)

    def create(
        self, request: AcceptedRequest, idempotency: Idempotency | None = None, route: RoutingDecision | None = None
    ) -> str:
        """As `create_all`, for one request."""
        return self.create_all([(request, route)], idempotency)

    def create_all(
        self,
        requests: Sequence[tuple[AcceptedRequest, RoutingDecision | None]],
        idempotency: Idempotency | None = None,
    ) -> str:
        """Store the requests, all or none, each in the line that its route chose in its policy's first tier.

        Returns the id of the first, or of the request to which the idempotency key maps already; then nothing is
        stored. Raises `IdempotencyConflict` and, with `fsync`, `NotOnDisk`.
        """
        ids = [request.request_id for request, _ in requests]
        arguments: _Move = {"requests": [_creation(request, route) for request, route in requests]}
        if idempotency is not None:
            meaning = idempotency.meaning(ids[0])
            arguments["key"] = {"name": idempotency.redis_key, "meaning": meaning, "ttl": IDEMPOTENCY_TTL_S}
        other, *created = cast("list[bytes]", self._call("CREATE", arguments))
        if earlier := self._earlier(idempotency, other or None):
            return earlier
        try:
            self._wait_for_disk()
        except NotOnDisk:
            cancelled = [self.cancel(request_id.decode()) for request_id in created]
            # If any has been answered in the meantime, the key keeps mapping to the answers.
            if all(cancelled) and idempotency is not None:
                self._redis.delete(idempotency.redis_key)
            raise
        return ids[0]

    def idempotent(self, idempotency: Idempotency) -> str | None:
        """The id of the request to which the key maps, or None. Raises `IdempotencyConflict` and `NotOnDisk`."""
        return self._earlier(idempotency, cast("bytes | None", self._redis.get(idempotency.redis_key)))

    def _earlier(self, idempotency: Idempotency | None, meaning: bytes | None) -> str | None:
        if idempotency is None or meaning is None:
            return None
        earlier = idempotency.earlier(meaning)
        self._wait_for_disk()  # the process that stored it may still be waiting for that
        return earlier

    def _wait_for_disk(self) -> None:
        """With `fsync`, block until all earlier writes are on disk. Raises `NotOnDisk`."""
        if not self._fsync:
            return
        # If a later write is on disk, all earlier ones are too, whatever connection they were made on.
        with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.hincrby(keys.counters(), "fsynced", 1)
            pipeline.execute_command("WAITAOF", 1, 0, FSYNC_TIMEOUT_MS)  # type: ignore[no-untyped-call]
            on_disk = pipeline.execute(raise_on_error=False)[-1]
        if not isinstance(on_disk, list) or not on_disk[0]:  # the second number counts replicas
            raise NotOnDisk(f"the append-only file was not on disk within {FSYNC_TIMEOUT_MS} ms: {on_disk}")

    def read(self, request_id: str) -> Record | None:
        """The record, or None if it does not exist, has expired or is not visible. Raises `UndecodableMessage`."""
        raw = cast("dict[bytes, bytes]", self._redis.hgetall(keys.request(request_id)))
        if b"request" not in raw:
            return None
        found = record(request_id, raw)
        return found if self._visible(found.owner) else None

    def state(self, request_id: str) -> State | None:
        """Only the state; None under the same conditions as `read`. Raises `UndecodableMessage`."""
        raw = cast("list[bytes | None]", self._redis.hmget(keys.request(request_id), "state", "owner"))
        state, owner = raw
        if state is None or owner is None or not self._visible(owner.decode(errors="replace")):
            return None
        with wire.reading("state", {b"state": state}):
            return State(state.decode())

    def is_gone(self, request_id: str) -> bool:
        """Whether the request finished and its record has expired; False for a request that never existed."""
        owner = cast("bytes | None", self._redis.get(keys.gone(request_id)))
        return owner is not None and self._visible(owner.decode())

    def cancel(self, request_id: str) -> bool:
        """Cancel the request. False if it has finished, or is not there. Two round trips."""
        if self.state(request_id) is None:
            return False
        unfinished = [state for state in State if state not in states.FINISHED]
        move = self._move(State.CANCELLED, fields={}, events=[Cancelled()], counter="cancelled")
        return bool(self._call("COMMIT", {"id": request_id, "before": unfinished, **move}))

    def delete(self, request_id: str) -> bool:
        """Delete the request, which is cancelled first if it is unfinished. False if it does not exist. Idempotent."""
        if self.state(request_id) is None:
            return False
        self.cancel(request_id)
        self._redis.delete(keys.request(request_id), keys.events(request_id), keys.audit(request_id))
        return True

    def count(self, counter: str) -> None:
        """Increment a counter."""
        with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.hincrby(keys.counters(), counter, 1)
            pipeline.expire(keys.counters(), scripts.COUNTERS_TTL_S)
            pipeline.execute()

    def counters(self) -> dict[str, int]:
        """All counters, which count since the deployment began."""
        raw = cast("dict[bytes, bytes]", self._redis.hgetall(keys.counters()))
        return {name.decode(): int(value) for name, value in raw.items()}

    def waiting(self) -> dict[str, int]:
        """The number of requests that wait for each tier, in all of its lines. Two round trips."""
        with self._redis.pipeline(transaction=False) as pipeline:
            for tier in Tier:
                pipeline.zrange(keys.workers(tier), 0, -1)
            lines = {
                tier: [tier.value, *(line_of(tier, raw.decode(errors="replace")) for raw in workers)]
                for tier, workers in zip(Tier, pipeline.execute(), strict=True)
            }
            for line in (line for tier in Tier for line in lines[tier]):
                pipeline.zcard(keys.line(line))
            lengths = iter(pipeline.execute())
        return {tier.value: sum(next(lengths) for _ in lines[tier]) for tier in Tier}

    # For workers

    def take(self, tier: Tier, worker: str, *, room: int = 1, busy: bool = False) -> Taken:
        """Take up to `room` waiting requests of the tier, each with a lease.

        `worker` is the worker's name (`presence.worker_name`); `busy`: it has other requests. A request that has lost
        an attempt is given only to an idle worker, and without others. If this is its last attempt, the record says
        that it stays alone until the end (`LeasedRequest.alone`). A record that this version cannot read counts as a
        lost attempt, since another worker's version may be able to.
        """
        arguments = {
            "tier": tier.value,
            "worker": worker,
            "room": room,
            "busy": busy,
            "lease_s": self._lifetimes.lease_s,
            "slack": scripts.FAIRNESS_SLACK_TOKENS,
            "solitary": max(1, self._lifetimes.max_attempts - 1),
            "started_at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        }
        now, must_empty, others_wait, *entries = cast("list[Any]", self._call("TAKE", arguments))
        requests, unreadable = [], []
        own = {tier.value, line_of(tier, worker)}
        stolen = [line.decode() for _, _, line, _ in entries if line.decode() not in own]
        if stolen:
            log.info("requests_stolen from=%s requests=%d", stolen[0], len(stolen))
        for request_id, attempt, _, flat in entries:
            raw: dict[bytes, bytes] = dict(zip(flat[::2], flat[1::2], strict=True))
            lease = Lease(request_id.decode(errors="replace"), tier, attempt, worker, raw[b"taken_at"].decode())
            try:
                requests.append(leased(lease, raw, float(now)))
            except UndecodableMessage as error:
                log.error("record_unreadable request_id=%s error=%s", lease.request_id, error)  # noqa: TRY400
                unreadable.append((lease, f"its record could not be read: {error}"))
        for lease, reason in unreadable:
            self._surrender_safely(lease, reason, died=False)
        return Taken(requests, bool(must_empty), bool(others_wait))

    def append(self, lease: Lease, events: Sequence[Event]) -> bool:
        """Append to the request's stream. False if the lease is lost: stop working on the request."""
        return not self.append_all([(lease, events)])

    def append_all(self, batches: Sequence[tuple[Lease, Sequence[Event]]]) -> list[Lease]:
        """Append to several requests' streams. Returns the leases that are lost, to whose streams nothing was added."""
        arguments = [{**_fence(lease), "events": [wire.encode(event) for event in events]} for lease, events in batches]
        kept = cast("list[int]", self._call("APPEND", {"batches": arguments}))
        return [lease for (lease, _), is_kept in zip(batches, kept, strict=True) if not is_kept]

    def renew(self, leases: Iterable[Lease]) -> list[Lease]:
        """Renew the leases. Returns those that are lost: stop working on their requests. Idempotent."""
        leases = list(leases)
        if not leases:
            return []
        arguments = {"lease_s": self._lifetimes.lease_s, "leases": [_fence(lease) for lease in leases]}
        return [leases[index] for index in cast("list[int]", self._call("RENEW", arguments))]

    def escalate(
        self, lease: Lease, draft: Draft | None, events: Sequence[Event], route: RoutingDecision | None = None
    ) -> bool:
        """Queue the request for the cloud, with the edge's draft if there is one.

        `events` precede the `Queued` event. False if the lease is lost.
        """
        fields: dict[str, Wire | int] = {} if draft is None else {"draft": draft}
        if route is not None:
            fields[route_field(Tier.CLOUD)] = route
        return self._commit(
            lease,
            State.ESCALATED,
            fields=fields,
            events=[*events, Queued(tier=Tier.CLOUD)],
            counter="escalated",
            route=route,
        )

    def succeed(self, lease: Lease, result: Result, events: Sequence[Event]) -> bool:
        """Finish the request with its answer. `events` precede the final event. False if the lease is lost."""
        return self._commit(
            lease,
            State.SUCCEEDED,
            fields={"result": result},
            events=[*events, Done(result=result)],
            counter=f"answered_{lease.tier}",
        )

    def fail(self, lease: Lease, failure: Failure, lost: Mapping[str, Wire | int] | None = None) -> bool:
        """Finish the request without an answer. False if the lease is lost."""
        return self._commit(
            lease,
            State.FAILED,
            fields={"failure": failure, **(lost or {})},
            events=[Failed(failure=failure)],
            counter="failed",
            counts_refusal=lost is None,
        )

    def hand_back(self, lease: Lease) -> bool:
        """Requeue the request for any worker of its tier, without a lost attempt. False if the lease is lost."""
        return self._wait_again(lease, counter="handed_back", events=[Queued(tier=lease.tier)], counts_refusal=True)

    def surrender(self, lease: Lease, reason: str, *, died: bool = True) -> bool:
        """Give up the lease and count the attempt as lost. Returns whether the request was requeued.

        After `max_attempts` lost attempts the request fails, with all of them as its history; if the last ran alone,
        the prompt is quarantined for its owner. Returns False as well if the lease was lost already. `died`: False if
        the request never reached an engine, so that its prompt cannot be the cause. Up to four round trips.
        """
        fields = ("worker", "lost", "request", "alone")
        raw = cast("list[bytes | None]", self._redis.hmget(keys.request(lease.request_id), *fields))
        worker, lost, request, alone = raw
        if worker is None or request is None:
            return False
        try:
            earlier = LostAttempts() if lost is None else wire.decode(LostAttempts, lost)
        except UndecodableMessage as error:
            log.error("record_unreadable request_id=%s error=%s", lease.request_id, error)  # noqa: TRY400 - says it all
            self.fail(lease, Failure(kind=FailureKind.INTERNAL_ERROR, tier=lease.tier, message=DAMAGED))
            return False
        latest = LostAttempt(
            attempt=lease.attempt,
            tier=lease.tier,
            worker=worker.decode(errors="replace"),
            reason=reason,
            lost_at_s=self._redis.time()[0],
            alone=died and alone == b"1",
        )
        history = LostAttempts(attempts=(*earlier.attempts, latest))
        lost_fields: dict[str, Wire | int] = {"lost": history, "num_lost": len(history.attempts)}
        if len(history.attempts) < self._lifetimes.max_attempts:
            return self._wait_again(lease, counter="taken_over", fields=lost_fields)
        message = f"{len(history.attempts)} attempts at this request were lost, the last because {reason}"
        kind = FailureKind.ATTEMPTS_EXHAUSTED
        failure = Failure(kind=kind, tier=lease.tier, message=message, attempts=history.attempts)
        if self.fail(lease, failure, lost_fields) and latest.alone:
            self._quarantine(lease.request_id, request)
        return False

    def _quarantine(self, request_id: str, request: bytes) -> None:
        with suppress(UndecodableMessage):  # then its prompt never reached an engine
            culprit = wire.decode(AcceptedRequest, request)
            name = keys.quarantine(culprit.owner, culprit.prompt_digest)
            self._redis.set(name, request_id, ex=self._lifetimes.quarantine_s)

    # For every process

    def expire(self) -> list[str]:
        """Surrender lapsed leases, and fail requests that waited past their deadline.

        Returns the ids of the requeued requests. Any number of processes may call this at any time. One round trip for
        every `EXPIRED_AT_ONCE` requests that are due, and a few for each lapsed lease.
        """
        arguments = {
            "most": EXPIRED_AT_ONCE,
            "claim_s": CLAIM_S,
            "finished": dict.fromkeys(states.FINISHED, True),
            "expired": {tier: self._failure(deadline_failure(tier, "it waited for a worker")) for tier in Tier},
            "unreadable": self._failure(Failure(kind=FailureKind.INTERNAL_ERROR, message=DAMAGED)),
        }
        requeued = []
        tiers = {working.value.encode(): tier for tier, working in states.WORKING.items()}
        num_due = EXPIRED_AT_ONCE
        while num_due == EXPIRED_AT_ONCE:
            num_due, *claimed = cast("list[Any]", self._call("EXPIRE", arguments))
            for request_id, state, attempt in claimed:
                lease = Lease(request_id.decode(errors="replace"), tiers[state], attempt, "")
                if self._surrender_safely(lease, LAPSED):
                    requeued.append(lease.request_id)
        return requeued

    def _surrender_safely(self, lease: Lease, reason: str, *, died: bool = True) -> bool:
        """As `surrender`, but whatever is wrong with one record keeps no other from being looked after."""
        try:
            return self.surrender(lease, reason, died=died)
        except REDIS_AWAY:
            raise
        except Exception:
            log.exception("request_not_surrendered request_id=%s", lease.request_id)
            return False

    def _failure(self, failure: Failure) -> _Move:
        """How a request ends with this failure."""
        events = [Failed(failure=failure)]
        return self._move(State.FAILED, fields={"failure": failure}, events=events, counter="failed")

    def _wait_again(
        self,
        lease: Lease,
        *,
        counter: str,
        fields: Mapping[str, Wire | int] | None = None,
        events: Sequence[Event] = (),
        counts_refusal: bool = False,
    ) -> bool:
        return self._commit(
            lease,
            states.WAITING[lease.tier],
            fields=fields or {},
            events=events,
            counter=counter,
            counts_refusal=counts_refusal,
        )

    def _commit(
        self,
        lease: Lease,
        after: State,
        *,
        events: Sequence[Event],
        counter: str,
        fields: Mapping[str, Wire | int],
        route: RoutingDecision | None = None,
        counts_refusal: bool = True,
    ) -> bool:
        before = states.WORKING[lease.tier]
        states.check(before, after)
        move = self._move(after, fields=fields, events=events, counter=counter)
        tier = next((tier for tier in Tier if states.WAITING[tier] == after), None)
        if tier is lease.tier:
            move |= {"tier": tier.value, "front": True}
        elif tier is not None:
            move |= _placement(tier, route) | {"job": job_fields(lease.request_id, tier)}
        return bool(
            self._call(
                "COMMIT", {**_fence(lease), "before": [before], "refusals": STALE if counts_refusal else None, **move}
            )
        )

    def _move(self, after: State, *, fields: Mapping[str, Wire | int], events: Sequence[Event], counter: str) -> _Move:
        """How a request moves into state `after`, as the scripts take it."""
        flat: list[str | int | bytes] = []
        for name, value in fields.items():
            flat += [name, wire.encode(value) if isinstance(value, Wire) else value]
        return {
            "after": after,
            "fields": flat,
            "events": [wire.encode(event) for event in events],
            "counter": counter,
            "ttl": self._lifetimes.result_ttl_s,
            "remembered": self._lifetimes.gone_ttl_s,
        }

    def _call(self, name: str, arguments: Mapping[str, Any]) -> object:
        return self._scripts[name](args=scripts.packed(arguments))


def deadline_failure(tier: Tier, meanwhile: str) -> Failure:
    """The failure of a request whose deadline passed while `meanwhile`."""
    message = f"the deadline passed while {meanwhile}"
    return Failure(kind=FailureKind.DEADLINE_EXCEEDED, tier=tier, message=message)


def line_of(tier: Tier, worker: str) -> str:
    """The name of a worker's own line."""
    return f"{tier}@{worker}"


def _creation(request: AcceptedRequest, route: RoutingDecision | None) -> _Move:
    """A request as `scripts.CREATE` takes it."""
    tier = request.policy.first_tier
    creation: _Move = {
        "id": request.request_id,
        "state": states.WAITING[tier],
        "job": job_fields(request.request_id, tier),
        "request": wire.encode(request),
        "event": wire.encode(Queued(tier=tier)),
        "owner": request.owner,
        "weight": request.weight,
        "tokens": request.num_tokens_at_most,
        "deadline_s": request.deadline_s,
        **_placement(tier, route),
    }
    if request.webhook:
        creation["webhook"] = request.webhook
    if route is not None:
        creation["route"] = wire.encode(route)
    return creation


def _placement(tier: Tier, route: RoutingDecision | None) -> _Move:
    """The tier and worker that a request is queued for, and its tokens of work."""
    placement: _Move = {"tier": tier, "work": 0 if route is None else route.work_tokens}
    if route is not None and route.worker is not None:
        placement["worker"] = route.worker
    return placement


def _number(raw: bytes | None) -> float:
    """The number, or 0 for whatever else somebody has put in its place."""
    try:
        number = float(raw or 0)
    except ValueError:
        return 0.0
    return number if math.isfinite(number) else 0.0


def _faded(value: float, at_s: float, now_s: float, period_s: float) -> float:
    """What is left now of a value that was noted at a time; as `faded` in the scripts."""
    return value * math.exp(min(0.0, at_s - now_s) / period_s)


def _fence(lease: Lease) -> _Move:
    """A lease as the scripts check it."""
    fence: _Move = {"id": lease.request_id, "attempt": lease.attempt, "state": states.WORKING[lease.tier]}
    return fence | {"taken_at": lease.taken_at} if lease.taken_at else fence


def _load_fields(tier: Tier, workers: Sequence[str]) -> list[str]:
    return [f"{what}:{line_of(tier, worker)}" for worker in workers for what in ("work", "jobs", "recent", "recent_at")]


def _load(sums: Sequence[bytes | None], now_s: float) -> Load:
    requests, tokens, owner_requests, owner_tokens = (int(_number(value)) for value in sums[:4])
    rate, rate_at = (_number(value) for value in sums[4:])
    faded = _faded(rate, rate_at, now_s, scripts.DRAIN_WINDOW_S)
    return Load(requests, tokens, owner_requests, owner_tokens, faded)


def _worker_loads(
    workers: Sequence[str], sums: Sequence[bytes | None], alive_until: Sequence[float | None], now_s: float
) -> dict[str, WorkerLoad]:
    loads = {}
    for index, worker in enumerate(workers):
        work, jobs, recent, recent_at = (_number(value) for value in sums[4 * index : 4 * index + 4])
        faded = _faded(recent, recent_at, now_s, scripts.RECENT_S)
        loads[worker] = WorkerLoad(int(work), int(jobs), faded, (alive_until[index] or 0) > now_s)
    return loads
