"""Request records: made once, moved on by whoever holds them, finished once.

A `Hold` is what a worker has of a request: the state and attempt that fence each of its commits. A commit that
comes too late (the lease lapsed, the user cancelled) is refused and counted, and changes nothing.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self, cast

from redis import Redis

from broker import keys, scripts, states
from broker.queues import JobQueues
from broker.states import State
from config.settings import RequestSettings
from schemas import wire
from schemas.drafts import Draft
from schemas.events import Cancelled, Done, Event, Failed, Queued
from schemas.policy import Tier
from schemas.requests import AcceptedRequest
from schemas.results import Failure, FailureKind, Result
from schemas.routes import Route
from schemas.wire import Wire

#: Seconds after which the reaper looks whether a waiting request still has its job on a queue.
WAITING_CHECK_S = 15.0
#: Requests that the reaper looks at in one go.
REAP_BATCH = 100


@dataclass(frozen=True)
class Lifetimes:
    """How long things are kept, in seconds, and how often a request may be taken over."""

    result_ttl_s: int
    unfinished_ttl_s: int
    lease_s: float
    max_attempts: int

    @classmethod
    def configured(cls, requests: RequestSettings) -> Self:
        """As the settings say."""
        return cls(
            result_ttl_s=requests.result_ttl_s,
            unfinished_ttl_s=requests.unfinished_ttl_s,
            lease_s=requests.lease_s,
            max_attempts=requests.max_attempts,
        )


@dataclass(frozen=True)
class Hold:
    """A worker's hold on a request."""

    request_id: str
    tier: Tier
    attempt: int
    worker: str

    @property
    def work_id(self) -> str:
        """What an engine knows this attempt by: the request may come back while its last one still runs there."""
        return f"{self.request_id}-{self.attempt}"


@dataclass(frozen=True)
class Taken:
    """A request that a worker has taken up, with what earlier stages left."""

    hold: Hold
    request: AcceptedRequest
    draft: Draft | None
    #: Seconds since the request was accepted, and the seconds that each earlier stage took.
    age_s: float
    queued_s: float
    drafting_s: float
    verify_queued_s: float


@dataclass(frozen=True)
class Record:
    """A request as its reader sees it."""

    request_id: str
    state: State
    attempt: int
    request: AcceptedRequest
    draft: Draft | None
    result: Result | None
    failure: Failure | None
    #: Where each tier's part was sent, and why.
    routes: Mapping[Tier, Route]


class RequestStore:
    """Reads and moves request records. Safe to share between threads; every method is one round trip or two."""

    def __init__(self, redis: Redis, lifetimes: Lifetimes) -> None:
        self._redis = redis
        self._lifetimes = lifetimes
        self._queues = JobQueues(redis, lifetimes.unfinished_ttl_s)
        self._create = redis.register_script(scripts.CREATE)
        self._begin = redis.register_script(scripts.BEGIN)
        self._append = redis.register_script(scripts.APPEND)
        self._commit_script = redis.register_script(scripts.COMMIT)
        self._renew = redis.register_script(scripts.RENEW)
        self._claim_due = redis.register_script(scripts.CLAIM_DUE)
        self._lapse = redis.register_script(scripts.LAPSE)

    def create(self, request: AcceptedRequest, route: Route | None = None) -> None:
        """Store the request and put its job where the route of its policy's first tier says, in one transaction."""
        tier = request.policy.first_tier
        request_id = request.request_id
        arguments: list[str | int | float | bytes] = [
            request_id,
            keys.notifications(),
            states.WAITING[tier],
            self._lifetimes.unfinished_ttl_s,
            WAITING_CHECK_S,
            wire.encode(request),
            wire.encode(Queued(tier=tier)),
        ]
        with self._redis.pipeline(transaction=True) as pipeline:
            pipeline.multi()  # RQ would otherwise call it, too late
            self._create(keys=self._keys(request_id), args=arguments, client=pipeline)
            if route is not None:
                pipeline.hset(keys.request(request_id), _route_field(tier), wire.encode(route))
            self._queues.push(request_id, tier, attempt=0, route=route, pipeline=pipeline)
            pipeline.execute()

    def read(self, request_id: str) -> Record | None:
        """The record, or None where there is none (any more)."""
        raw = cast("dict[bytes, bytes]", self._redis.hgetall(keys.request(request_id)))
        if b"request" not in raw:
            return None
        return Record(
            request_id=request_id,
            state=State(raw[b"state"].decode()),
            attempt=int(raw[b"attempt"]),
            request=wire.decode(AcceptedRequest, raw[b"request"]),
            draft=wire.decode(Draft, raw[b"draft"]) if b"draft" in raw else None,
            result=wire.decode(Result, raw[b"result"]) if b"result" in raw else None,
            failure=wire.decode(Failure, raw[b"failure"]) if b"failure" in raw else None,
            routes={
                tier: wire.decode(Route, raw[field]) for tier in Tier if (field := _route_field(tier).encode()) in raw
            },
        )

    def state(self, request_id: str) -> State | None:
        """The state alone, or None where there is no record."""
        raw = cast("bytes | None", self._redis.hget(keys.request(request_id), "state"))
        return None if raw is None else State(raw.decode())

    def begin(self, request_id: str, tier: Tier, worker: str) -> Taken | None:
        """Take up a waiting request. None where it does not wait for this tier: finished, cancelled, or another's."""
        answer = self._begin(
            keys=self._keys(request_id),
            args=[
                request_id,
                keys.notifications(),
                states.WAITING[tier],
                states.WORKING[tier],
                worker,
                self._lifetimes.lease_s,
            ],
        )
        if not answer[0]:
            return None
        flat = answer[2]
        raw: dict[bytes, bytes] = dict(zip(flat[::2], flat[1::2], strict=True))
        return _taken(Hold(request_id, tier, int(answer[0]), worker), raw, now=float(answer[1]))

    def append(self, hold: Hold, events: Sequence[Event]) -> bool:
        """Append to the request's stream. False where the hold is lost: stop working on it."""
        return not self.append_all([(hold, events)])

    def append_all(self, batches: Sequence[tuple[Hold, Sequence[Event]]]) -> list[Hold]:
        """Append to several requests' streams in one round trip. Answers the holds that are lost."""
        pipeline = self._redis.pipeline(transaction=False)
        for hold, events in batches:
            working = states.WORKING[hold.tier]
            arguments: list[str | int | bytes] = [hold.request_id, keys.notifications(), hold.attempt, working]
            arguments += [wire.encode(event) for event in events]
            self._append(keys=self._keys(hold.request_id), args=arguments, client=pipeline)
        held = pipeline.execute()
        return [hold for (hold, _), kept in zip(batches, held, strict=True) if not kept]

    def escalate(self, hold: Hold, draft: Draft, events: Sequence[Event], route: Route | None = None) -> bool:
        """Hand the request to the cloud with its draft. `events` come before its queueing. False: the hold is lost."""
        routed = {} if route is None else {_route_field(Tier.CLOUD): route}
        moved = self._commit(
            hold.request_id,
            before=[State.DRAFTING],
            after=State.ESCALATED,
            attempt=hold.attempt,
            fields={"draft": draft, **routed},
            events=[*events, Queued(tier=Tier.CLOUD)],
            counter="escalated",
        )
        if moved:
            self._queues.push(hold.request_id, Tier.CLOUD, hold.attempt, route=route)
        return moved

    def succeed(self, hold: Hold, result: Result, events: Sequence[Event]) -> bool:
        """Finish the request with its answer. `events` come before the final one. False: the hold is lost."""
        return self._commit(
            hold.request_id,
            before=[states.WORKING[hold.tier]],
            after=State.SUCCEEDED,
            attempt=hold.attempt,
            fields={"result": result},
            events=[*events, Done(result=result)],
            counter=f"answered_{hold.tier}",
        )

    def fail(self, hold: Hold, failure: Failure) -> bool:
        """Finish the request without an answer. False where the hold is lost."""
        return self._fail(hold.request_id, states.WORKING[hold.tier], hold.attempt, failure)

    def hand_back(self, hold: Hold) -> bool:
        """Put the request back to wait for another worker of its tier. False where the hold is lost."""
        moved = self._commit(
            hold.request_id,
            before=[states.WORKING[hold.tier]],
            after=states.WAITING[hold.tier],
            attempt=hold.attempt,
            fields={},
            events=[Queued(tier=hold.tier)],
            counter="handed_back",
        )
        if moved:
            self._queues.push(hold.request_id, hold.tier, hold.attempt, at_front=True)
        return moved

    def surrender(self, hold: Hold) -> None:
        """Give the request up because the engine died under it: as a crash, which counts against the request."""
        if self._take_over(hold.request_id, hold.tier, hold.attempt):
            self._queues.push(hold.request_id, hold.tier, hold.attempt)

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

    def renew(self, holds: Iterable[Hold]) -> list[Hold]:
        """Renew the leases of requests in hand. Answers the holds that are lost: stop working on them. Idempotent."""
        asked = list(holds)
        if not asked:
            return []
        arguments: list[str | int | float] = [self._lifetimes.lease_s]
        for hold in asked:
            arguments += [hold.request_id, hold.attempt, states.WORKING[hold.tier]]
        records = [keys.request(hold.request_id) for hold in asked]
        lost = cast("list[int]", self._renew(keys=[keys.leases(), *records], args=arguments))
        return [asked[place] for place in lost]

    def reap(self) -> list[str]:
        """Look after requests whose lease has lapsed or whose job is gone. Answers the ids that were pushed again.

        Any number of workers may call this at any time; each due request goes to one of them.
        """
        due = self._claim_due(keys=[keys.leases()], args=[self._lifetimes.lease_s, REAP_BATCH])
        return [request_id for request_id in (raw.decode() for raw in due) if self._look_after(request_id)]

    def counters(self) -> dict[str, int]:
        """What was counted since the deployment began."""
        raw = cast("dict[bytes, bytes]", self._redis.hgetall(keys.counters()))
        return {name.decode(): int(value) for name, value in raw.items()}

    def waiting(self) -> dict[str, int]:
        """Jobs on each tier's queue."""
        return {tier.value: self._queues.length(tier) for tier in Tier}

    def _look_after(self, request_id: str) -> bool:
        raw = cast("list[bytes | None]", self._redis.hmget(keys.request(request_id), "state", "attempt"))
        state = None if raw[0] is None else State(raw[0].decode())
        if state is None or state in states.FINISHED:
            self._redis.zrem(keys.leases(), request_id)
            return False
        tier = next(t for t in Tier if state in (states.WAITING[t], states.WORKING[t]))
        attempt = int(raw[1] or 0)
        if state == states.WAITING[tier]:
            if self._queues.holds(request_id, tier, attempt):
                return False
        elif not self._take_over(request_id, tier, attempt):
            return False
        self._queues.push(request_id, tier, attempt)
        return True

    def _take_over(self, request_id: str, tier: Tier, attempt: int) -> bool:
        """Whether the request, whose worker is gone, waits again; after too many attempts it fails instead."""
        back = states.WAITING[tier]
        crashes = self._lapse(
            keys=self._keys(request_id),
            args=[request_id, keys.notifications(), states.WORKING[tier], attempt, back, WAITING_CHECK_S],
        )
        if crashes and crashes >= self._lifetimes.max_attempts:
            message = f"{crashes} workers ended while they worked on this request; it is not tried again"
            failure = Failure(kind=FailureKind.ATTEMPTS_EXHAUSTED, tier=tier, message=message)
            self._fail(request_id, back, attempt, failure)
            return False
        return bool(crashes)

    def _fail(self, request_id: str, before: State, attempt: int, failure: Failure) -> bool:
        return self._commit(
            request_id,
            before=[before],
            after=State.FAILED,
            attempt=attempt,
            fields={"failure": failure},
            events=[Failed(failure=failure)],
            counter="failed",
        )

    def _commit(
        self,
        request_id: str,
        *,
        before: Sequence[State],
        after: State,
        attempt: int | None,
        fields: Mapping[str, Wire],
        events: Sequence[Event],
        counter: str,
    ) -> bool:
        for state in before:
            states.check(state, after)
        finished = after in states.FINISHED
        arguments: list[str | int | float | bytes] = [request_id, keys.notifications()]
        arguments += ["" if attempt is None else attempt, len(before), *before, after]
        arguments += [self._lifetimes.result_ttl_s, ""] if finished else ["", WAITING_CHECK_S]
        arguments += [counter, len(fields)]
        for name, message in fields.items():
            arguments += [name, wire.encode(message)]
        arguments += [wire.encode(event) for event in events]
        return bool(self._commit_script(keys=self._keys(request_id), args=arguments))

    @staticmethod
    def _keys(request_id: str) -> list[str]:
        return [keys.request(request_id), keys.events(request_id), keys.leases(), keys.counters()]


def _route_field(tier: Tier) -> str:
    return f"route_{tier}"


def _taken(hold: Hold, raw: Mapping[bytes, bytes], now: float) -> Taken:
    request = wire.decode(AcceptedRequest, raw[b"request"])
    at = {state: float(raw[f"at_{state}".encode()]) for state in State if f"at_{state}".encode() in raw}
    accepted = at.get(State.QUEUED, at.get(State.ESCALATED, now))
    drafting, escalated, verifying = at.get(State.DRAFTING), at.get(State.ESCALATED), at.get(State.VERIFYING)
    return Taken(
        hold=hold,
        request=request,
        draft=wire.decode(Draft, raw[b"draft"]) if b"draft" in raw else None,
        age_s=now - accepted,
        queued_s=drafting - accepted if drafting else 0.0,
        drafting_s=escalated - drafting if drafting and escalated else 0.0,
        verify_queued_s=verifying - escalated if verifying and escalated else 0.0,
    )
