"""Requests in Redis: made once, moved on by whoever has the lease, finished once.

A request that waits is in five places, all of which one script writes at once (broker/scripts.py), so that nothing has
to be reconciled. All scripts write them but RENEW, which writes what is due:

| structure | says | repaired by |
| --- | --- | --- |
| its record (`keys.request`) | everything about it | nothing: it is the truth |
| a line (`keys.line`) | which request a worker takes next | TAKE drops what does not wait |
| what is due (`keys.due`) | when somebody must act | EXPIRE drops what has finished |
| the load (`keys.load`) | sums, for limits, routing and fair shares | it expires when nothing is unfinished |
| a job in RQ | that there is work, for `rq info` | workers remove jobs that stand for no request |

A commit that comes too late (the lease lapsed, the user cancelled) is refused and counted, and changes nothing.
"""

import copy
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

import msgpack
from redis import Redis

from broker import keys, scripts, states
from broker.backpressure import Load
from broker.idempotency import IDEMPOTENCY_TTL_S, Idempotency
from broker.leases import Lease, LeasedRequest, Lifetimes, Record, leased, read_attempt, record, route_field
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
#: Milliseconds to wait for the append-only file to be on disk, where that is asked for.
FSYNC_TIMEOUT_MS = 5_000
#: Requests that one call of `expire` looks at, and seconds until another process looks at what it claimed.
EXPIRED_AT_ONCE, CLAIM_S = 200, 5.0
#: Why an attempt was lost, as far as anyone but its worker can tell.
LAPSED = "its worker did not renew its lease: killed, hung or cut off"

#: What a commit is made of: see `scripts.COMMIT`.
_Move = dict[str, Any]


class NotOnDisk(Exception):
    """The append-only file did not reach the disk in time. A request that was just stored has been taken back."""


@dataclass(frozen=True)
class Survey:
    """What a gateway asks Redis before it lets requests in: one round trip for all of it."""

    load: Load
    #: The load of each worker that was asked for.
    workers: Mapping[str, WorkerLoad]
    #: For each request, the id of the same owner's request that a worker ended on which did nothing else; or None.
    quarantined: Sequence[str | None]
    #: The id of the request for which the idempotency key stands already.
    earlier: str | None


@dataclass(frozen=True)
class Taken:
    """What a worker got when it asked for work."""

    requests: Sequence[LeasedRequest]
    #: The next request must begin alone: the worker is to finish what it has before it asks again.
    must_empty: bool = False
    #: Requests wait for other workers, none of which is worth taking now.
    others_wait: bool = False


class RequestStore:
    """Reads and moves requests. Safe to share between threads; a method is one round trip unless it says otherwise."""

    def __init__(
        self,
        redis: Redis,
        lifetimes: Lifetimes,
        *,
        fsync: bool = False,
    ) -> None:
        self._redis = redis
        self._lifetimes = lifetimes
        self._fsync = fsync
        self._visible: Callable[[str], bool] = lambda _owner: True
        self._scripts = {
            name: redis.register_script(getattr(scripts, name))
            for name in ("CREATE", "TAKE", "APPEND", "COMMIT", "RENEW", "EXPIRE")
        }

    def seen_by(self, visible: Callable[[str], bool]) -> "RequestStore":
        """The same store for callers who may see the requests of these owners only.

        What they may not see is not there for `read`, `state`, `cancel`, `delete` and `is_gone`.
        """
        seen = copy.copy(self)
        seen._visible = visible  # noqa: SLF001 - it is one of us
        return seen

    # What gateways do

    def survey(
        self,
        requests: Sequence[AcceptedRequest],
        tier: Tier,
        workers: Sequence[str],
        idempotency: Idempotency | None = None,
    ) -> Survey:
        """What must be known before the requests of one owner are let in. Raises `IdempotencyConflict`, `NotOnDisk`."""
        owner = requests[0].owner
        fields = ["requests", "tokens", f"requests:{owner}", f"tokens:{owner}", "rate", "rate_at"]
        with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.time()
            pipeline.hmget(keys.load(), [*fields, *_load_fields(tier, workers)])
            pipeline.mget([keys.quarantine(one.owner, one.prompt_digest) for one in requests])
            if workers:
                pipeline.zmscore(keys.workers(tier), list(workers))
            if idempotency is not None:
                pipeline.get(idempotency.redis_key)
            clock, sums, quarantined, *rest = pipeline.execute()
        now_s = clock[0] + clock[1] / 1e6
        lives = rest.pop(0) if workers else []
        meaning = rest.pop() if idempotency is not None else None
        return Survey(
            load=_load(sums[:6], now_s),
            workers=_worker_loads(workers, sums[6:], lives, now_s),
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
            clock, sums, lives = pipeline.execute()
        return _worker_loads(workers, sums, lives, clock[0] + clock[1] / 1e6)

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
        """Store the requests, each to wait where its route says in the first tier of its policy: all or none.

        Returns the first one's id, or that of the request for which the idempotency key stands already; then nothing
        is stored. Raises `IdempotencyConflict` and, where that is asked for, `NotOnDisk`.
        """
        ids = [request.request_id for request, _ in requests]
        arguments: _Move = {"requests": [_creation(request, route) for request, route in requests]}
        if idempotency is not None:
            meaning = idempotency.meaning(ids[0])
            arguments["key"] = {"name": idempotency.redis_key, "meaning": meaning, "ttl": IDEMPOTENCY_TTL_S}
        other = cast("bytes", self._call("CREATE", arguments))
        if earlier := self._earlier(idempotency, other or None):
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

    def idempotent(self, idempotency: Idempotency) -> str | None:
        """The id of the request for which the key stands, or None. Raises `IdempotencyConflict` and `NotOnDisk`."""
        return self._earlier(idempotency, cast("bytes | None", self._redis.get(idempotency.redis_key)))

    def _earlier(self, idempotency: Idempotency | None, meaning: bytes | None) -> str | None:
        if idempotency is None or meaning is None:
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
            pipeline.execute_command("WAITAOF", 1, 0, FSYNC_TIMEOUT_MS)  # type: ignore[no-untyped-call]
            on_disk = pipeline.execute(raise_on_error=False)[-1]
        if not isinstance(on_disk, list) or not on_disk[0]:  # the second number is of replicas, which nobody waits for
            raise NotOnDisk(f"the append-only file was not on disk within {FSYNC_TIMEOUT_MS} ms: {on_disk}")

    def read(self, request_id: str) -> Record | None:
        """The record, or None where there is none (any more) that the caller may see. Raises `UndecodableMessage`."""
        raw = cast("dict[bytes, bytes]", self._redis.hgetall(keys.request(request_id)))
        if b"request" not in raw:
            return None
        found = record(request_id, raw)
        return found if self._visible(found.owner) else None

    def state(self, request_id: str) -> State | None:
        """The state alone, or None as `read`. Raises `UndecodableMessage`."""
        raw = cast("list[bytes | None]", self._redis.hmget(keys.request(request_id), "state", "owner"))
        state, owner = raw
        if state is None or owner is None or not self._visible(owner.decode(errors="replace")):
            return None
        with wire.reading("state", {b"state": state}):
            return State(state.decode())

    def is_gone(self, request_id: str) -> bool:
        """Whether there was such a request, which finished and whose record has expired."""
        owner = cast("bytes | None", self._redis.get(keys.gone(request_id)))
        return owner is not None and self._visible(owner.decode())

    def cancel(self, request_id: str) -> bool:
        """Finish the request because nobody wants it. False where it had finished, or is not there. Two round trips."""
        return self.state(request_id) is not None and self._commit(
            request_id,
            before=[state for state in State if state not in states.FINISHED],
            after=State.CANCELLED,
            events=[Cancelled()],
            counter="cancelled",
        )

    def delete(self, request_id: str) -> bool:
        """Forget the request, cancelled first if it has not finished. False where it is not there. Idempotent."""
        if self.state(request_id) is None:
            return False
        self.cancel(request_id)
        self._redis.delete(keys.request(request_id), keys.events(request_id))
        return True

    def count(self, what: str) -> None:
        """Count one more of what the counters hold."""
        with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.hincrby(keys.counters(), what, 1)
            pipeline.expire(keys.counters(), scripts.COUNTERS_TTL_S)
            pipeline.execute()

    def counters(self) -> dict[str, int]:
        """What was counted since the deployment began."""
        raw = cast("dict[bytes, bytes]", self._redis.hgetall(keys.counters()))
        return {name.decode(): int(value) for name, value in raw.items()}

    def waiting(self) -> dict[str, int]:
        """Requests that wait for each tier, in all of its lines. Two round trips."""
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

    # What workers do

    def take(self, tier: Tier, worker: str, *, room: int = 1, busy: bool = False) -> Taken:
        """Take up to `room` waiting requests of the tier, each with a lease.

        `worker` is its name in the lines (`presence.worker_name`); `busy`: it has requests in hand. A request that has
        lost an attempt is only given to a worker without any, and alone; on its last attempt it is noted that it is
        alone throughout (`LeasedRequest.alone`). A record that this version cannot read is an attempt lost: another
        worker's may.
        """
        arguments = {
            "tier": tier.value,
            "worker": worker,
            "worker_id": worker.partition("@")[0],
            "room": room,
            "busy": busy,
            "lease_s": self._lifetimes.lease_s,
            "slack": scripts.FAIRNESS_SLACK_TOKENS,
            "solitary": max(1, self._lifetimes.max_attempts - 1),
            "started_at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        }
        now, must_empty, others_wait, *entries = cast("list[Any]", self._call("TAKE", arguments))
        requests = []
        own = {tier.value, line_of(tier, worker)}
        stolen = [line.decode() for _, _, line, _ in entries if line.decode() not in own]
        if stolen:
            log.info("requests_stolen from=%s requests=%d", stolen[0], len(stolen))
        for request_id, attempt, _, flat in entries:
            raw: dict[bytes, bytes] = dict(zip(flat[::2], flat[1::2], strict=True))
            lease = Lease(request_id.decode(), tier, attempt, worker)
            try:
                requests.append(leased(lease, raw, float(now)))
            except UndecodableMessage as error:
                log.error("record_unreadable request_id=%s error=%s", lease.request_id, error)  # noqa: TRY400
                self.surrender(lease, f"its record could not be read: {error}", died=False)
        return Taken(requests, bool(must_empty), bool(others_wait))

    def append(self, lease: Lease, events: Sequence[Event]) -> bool:
        """Append to the request's stream. False where the lease is lost: stop working on it."""
        return not self.append_all([(lease, events)])

    def append_all(self, batches: Sequence[tuple[Lease, Sequence[Event]]]) -> list[Lease]:
        """Append to several requests' streams. Returns the leases that are lost."""
        arguments = [{**_fence(lease), "events": [wire.encode(event) for event in events]} for lease, events in batches]
        kept = cast("list[int]", self._call("APPEND", {"batches": arguments}))
        return [lease for (lease, _), is_kept in zip(batches, kept, strict=True) if not is_kept]

    def renew(self, leases: Iterable[Lease]) -> list[Lease]:
        """Renew the leases. Returns those that are lost: stop working on them. Idempotent."""
        asked = list(leases)
        if not asked:
            return []
        arguments = {"lease_s": self._lifetimes.lease_s, "leases": [_fence(lease) for lease in asked]}
        return [asked[place] for place in cast("list[int]", self._call("RENEW", arguments))]

    def escalate(
        self, lease: Lease, draft: Draft | None, events: Sequence[Event], route: RoutingDecision | None = None
    ) -> bool:
        """Hand the request to the cloud, with its draft where the edge could write one.

        `events` come before its queueing. False: the lease is lost.
        """
        fields: dict[str, Wire | int] = {} if draft is None else {"draft": draft}
        if route is not None:
            fields[route_field(Tier.CLOUD)] = route
        return self._commit(
            lease.request_id,
            before=[State.DRAFTING],
            after=State.ESCALATED,
            attempt=lease.attempt,
            fields=fields,
            events=[*events, Queued(tier=Tier.CLOUD)],
            counter="escalated",
            refusals=STALE,
            route=route,
        )

    def succeed(self, lease: Lease, result: Result, events: Sequence[Event]) -> bool:
        """Finish the request with its answer. `events` come before the final one. False: the lease is lost."""
        return self._commit(
            lease.request_id,
            before=[states.WORKING[lease.tier]],
            after=State.SUCCEEDED,
            attempt=lease.attempt,
            fields={"result": result},
            events=[*events, Done(result=result)],
            counter=f"answered_{lease.tier}",
            refusals=STALE,
        )

    def fail(self, lease: Lease, failure: Failure, lost: Mapping[str, Wire | int] | None = None) -> bool:
        """Finish the request without an answer. False where the lease is lost."""
        return self._commit(
            lease.request_id,
            before=[states.WORKING[lease.tier]],
            after=State.FAILED,
            attempt=lease.attempt,
            fields={"failure": failure, **(lost or {})},
            events=[Failed(failure=failure)],
            counter="failed",
            refusals=STALE if lost is None else None,
        )

    def hand_back(self, lease: Lease) -> bool:
        """Let the request wait for another worker of its tier. False where the lease is lost."""
        return self._wait_again(lease, counter="handed_back", events=[Queued(tier=lease.tier)], refusals=STALE)

    def surrender(self, lease: Lease, reason: str, *, died: bool = True) -> bool:
        """Count an attempt at the request as lost, with its worker. Whether it waits again. Two round trips or three.

        After too many it fails instead, with all of them as its history; if the last was made alone, the prompt is
        quarantined for its owner. False as well where the lease is lost already. `died` False: it never reached an
        engine, so that the prompt cannot be to blame.
        """
        fields = ("worker", "lost", "request", "alone")
        raw = cast("list[bytes | None]", self._redis.hmget(keys.request(lease.request_id), *fields))
        worker, lost, request, alone = raw
        if worker is None or request is None:
            return False
        earlier = LostAttempts() if lost is None else wire.decode(LostAttempts, lost)
        latest = LostAttempt(
            attempt=lease.attempt,
            tier=lease.tier,
            worker=worker.decode(),
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
        with suppress(UndecodableMessage):  # then no prompt of it ever reached an engine
            culprit = wire.decode(AcceptedRequest, request)
            name = keys.quarantine(culprit.owner, culprit.prompt_digest)
            self._redis.set(name, request_id, ex=self._lifetimes.quarantine_s)

    # What any process does for all

    def expire(self) -> list[str]:
        """Act on every lapsed lease and every deadline that has passed for a waiting request.

        Returns the ids of the requests that wait again. Any number of processes may call this at any time; a round
        trip for every `EXPIRED_AT_ONCE` requests, and a few for each lapsed lease.
        """
        ends = {
            tier: self._move(
                State.FAILED,
                fields={"failure": deadline_failure(tier, "it waited for a worker")},
                events=[Failed(failure=deadline_failure(tier, "it waited for a worker"))],
                counter="failed",
            )
            for tier in Tier
        }
        finished = dict.fromkeys(states.FINISHED, True)
        arguments = {"most": EXPIRED_AT_ONCE, "claim_s": CLAIM_S, "expired": ends, "finished": finished}
        again = []
        num_due = EXPIRED_AT_ONCE
        while num_due == EXPIRED_AT_ONCE:
            num_due, *claimed = cast("list[Any]", self._call("EXPIRE", arguments))
            again += [raw[0].decode() for raw in claimed if self._lapse(*raw)]
        return again

    def _lapse(self, raw_id: bytes, state: bytes, attempt: bytes) -> bool:
        """Take a request away from a worker that did not renew its lease. One that cannot be read holds up no other."""
        request_id = raw_id.decode()
        try:
            with wire.reading("record", {b"state": state, b"attempt": attempt}):
                tier = {working.value: tier for tier, working in states.WORKING.items()}[state.decode()]
                lease = Lease(request_id, tier, read_attempt(attempt), "")
            return self.surrender(lease, LAPSED)
        except UndecodableMessage as error:
            log.error("record_unreadable request_id=%s error=%s", request_id, error)  # noqa: TRY400 - says it all
            return False

    def _wait_again(
        self,
        lease: Lease,
        *,
        counter: str,
        fields: Mapping[str, Wire | int] | None = None,
        events: Sequence[Event] = (),
        refusals: str | None = None,
    ) -> bool:
        return self._commit(
            lease.request_id,
            before=[states.WORKING[lease.tier]],
            after=states.WAITING[lease.tier],
            attempt=lease.attempt,
            fields=fields or {},
            events=events,
            counter=counter,
            refusals=refusals,
        )

    def _commit(  # noqa: PLR0913 - a commit is all of this
        self,
        request_id: str,
        *,
        before: Sequence[State],
        after: State,
        events: Sequence[Event],
        counter: str,
        fields: Mapping[str, Wire | int] | None = None,
        attempt: int | None = None,
        refusals: str | None = None,
        route: RoutingDecision | None = None,
    ) -> bool:
        for state in before:
            states.check(state, after)
        move = self._move(after, fields=fields or {}, events=events, counter=counter)
        tier = next((tier for tier in Tier if states.WAITING[tier] == after), None)
        if tier is not None:
            if after is State.ESCALATED and State.DRAFTING in before:
                move |= _placement(tier, route) | {"job": job_fields(request_id, tier)}
            else:
                move |= {"tier": tier.value, "front": True}
        fence = {"id": request_id, "before": before, "attempt": attempt, "refusals": refusals}
        return bool(self._call("COMMIT", fence | move))

    def _move(self, after: State, *, fields: Mapping[str, Wire | int], events: Sequence[Event], counter: str) -> _Move:
        """How a request moves, for the scripts."""
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
        """Run a script. None has no place in a map of Lua's: it is left out."""
        given = {key: value for key, value in arguments.items() if value is not None}
        return self._scripts[name](args=[msgpack.packb(given, use_bin_type=False)])


def deadline_failure(tier: Tier, meanwhile: str) -> Failure:
    """What a request ends with whose deadline has passed."""
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
    """Where a request waits, and the tokens of work that it counts for there."""
    placement: _Move = {"tier": tier, "work": 0 if route is None else route.work_tokens}
    if route is not None and route.worker is not None:
        placement["worker"] = route.worker
    return placement


def _fence(lease: Lease) -> _Move:
    """What a lease is recognised by."""
    return {"id": lease.request_id, "attempt": lease.attempt, "state": states.WORKING[lease.tier]}


def _load_fields(tier: Tier, workers: Sequence[str]) -> list[str]:
    return [f"{what}:{line_of(tier, worker)}" for worker in workers for what in ("work", "jobs", "recent", "recent_at")]


def _load(sums: Sequence[bytes | None], now_s: float) -> Load:
    requests, tokens, owner_requests, owner_tokens = (int(float(value or 0)) for value in sums[:4])
    rate, rate_at = (float(value or 0) for value in sums[4:])
    faded = math.exp(min(0.0, rate_at - now_s) / scripts.DRAIN_WINDOW_S)
    return Load(requests, tokens, owner_requests, owner_tokens, rate * faded)


def _worker_loads(
    workers: Sequence[str], sums: Sequence[bytes | None], lives: Sequence[float | None], now_s: float
) -> dict[str, WorkerLoad]:
    loads = {}
    for place, worker in enumerate(workers):
        work, jobs, recent, recent_at = (float(value or 0) for value in sums[4 * place : 4 * place + 4])
        faded = math.exp(min(0.0, recent_at - now_s) / scripts.RECENT_S)
        loads[worker] = WorkerLoad(int(work), int(jobs), recent * faded, (lives[place] or 0) > now_s)
    return loads
