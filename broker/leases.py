"""A request as its worker has it (`Lease`, `LeasedRequest`) and as a reader sees it (`Record`).

A lease fences its worker's commits: a commit is refused unless the request still has the lease's state and attempt.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from broker.states import State
from config.settings import RequestSettings
from schemas import wire
from schemas.drafts import Draft
from schemas.policy import Tier
from schemas.requests import AcceptedRequest
from schemas.results import Failure, Result
from schemas.routing_decision import RoutingDecision

#: The largest attempt number: up to here the numbers of Lua, which are floating-point, are exact.
MOST_ATTEMPTS = 2**53


def read_attempt(raw: bytes) -> int:
    """The attempt number in a record. Raises `ValueError` for a value that no script has written."""
    attempt = int(raw)
    if not 0 <= attempt <= MOST_ATTEMPTS:
        raise ValueError(f"{attempt} is not the number of an attempt")
    return attempt


@dataclass(frozen=True)
class Lifetimes:
    """How long leases last and results are kept, in seconds, and how many attempts a request has."""

    result_ttl_s: int
    lease_s: float
    max_attempts: int
    gone_ttl_s: int = 86_400
    quarantine_s: int = 86_400

    @classmethod
    def configured(cls, requests: RequestSettings) -> Self:
        """The lifetimes in the settings."""
        return cls(
            result_ttl_s=requests.result_ttl_s,
            lease_s=requests.lease_s,
            max_attempts=requests.max_attempts,
            gone_ttl_s=requests.gone_ttl_s,
            quarantine_s=requests.quarantine_s,
        )


@dataclass(frozen=True)
class Lease:
    """A worker's claim on a request until a time."""

    request_id: str
    tier: Tier
    attempt: int
    #: The worker's name (`presence.worker_name`).
    worker: str

    #: When it was taken, as the record says it; empty where that is not compared.
    taken_at: str = ""

    @property
    def worker_id(self) -> str:
        """The worker's id, which events and results show."""
        return self.worker.partition("@")[0]

    @property
    def work_id(self) -> str:
        """The attempt's id in the engine, in which the request's previous attempt may still be running."""
        return f"{self.request_id}-{self.attempt}-{self.taken_at}"


@dataclass(frozen=True)
class LeasedRequest:
    """A request that a worker has taken, with the results of earlier stages."""

    lease: Lease
    request: AcceptedRequest
    draft: Draft | None
    #: Seconds since the request was accepted, and the seconds that each earlier stage took.
    age_s: float
    queued_s: float
    drafting_s: float
    verify_queued_s: float
    #: Seconds until the deadline; 0 or less if it has passed.
    remaining_s: float
    #: Earlier attempts that were lost with their workers.
    num_lost: int = 0
    #: Whether the worker runs no other request during this attempt, from its beginning to its end.
    alone: bool = False
    #: Tokens of work that the request was estimated at when it was routed.
    work_tokens: int = 0


@dataclass(frozen=True)
class Record:
    """A request as a reader sees it."""

    request_id: str
    owner: str
    state: State
    attempt: int
    request: AcceptedRequest
    draft: Draft | None
    result: Result | None
    failure: Failure | None
    #: Where each tier's part was sent, and why.
    routes: Mapping[Tier, RoutingDecision]


def route_field(tier: Tier) -> str:
    """The field of a record that holds the tier's route."""
    return f"route_{tier}"


def record(request_id: str, raw: Mapping[bytes, bytes]) -> Record:
    """Decodes a record's fields. Raises `UndecodableMessage`."""
    with wire.reading("record", raw):
        return Record(
            request_id=request_id,
            owner=raw[b"owner"].decode(),
            state=State(raw[b"state"].decode()),
            attempt=read_attempt(raw[b"attempt"]),
            request=wire.decode(AcceptedRequest, raw[b"request"]),
            draft=wire.decode(Draft, raw[b"draft"]) if b"draft" in raw else None,
            result=wire.decode(Result, raw[b"result"]) if b"result" in raw else None,
            failure=wire.decode(Failure, raw[b"failure"]) if b"failure" in raw else None,
            routes={
                tier: wire.decode(RoutingDecision, raw[field])
                for tier in Tier
                if (field := route_field(tier).encode()) in raw
            },
        )


def leased(lease: Lease, raw: Mapping[bytes, bytes], now: float) -> LeasedRequest:
    """Decodes the record of a request that was taken at `now` of Redis's clock. Raises `UndecodableMessage`."""
    with wire.reading("record", raw):
        return _leased(lease, raw, now)


def _leased(lease: Lease, raw: Mapping[bytes, bytes], now: float) -> LeasedRequest:
    request = wire.decode(AcceptedRequest, raw[b"request"])
    at = {state: float(raw[f"at_{state}".encode()]) for state in State if f"at_{state}".encode() in raw}
    accepted = at.get(State.QUEUED, at.get(State.ESCALATED, now))
    drafting, escalated, verifying = at.get(State.DRAFTING), at.get(State.ESCALATED), at.get(State.VERIFYING)
    return LeasedRequest(
        lease=lease,
        request=request,
        draft=wire.decode(Draft, raw[b"draft"]) if b"draft" in raw else None,
        age_s=now - accepted,
        queued_s=drafting - accepted if drafting else 0.0,
        drafting_s=escalated - drafting if drafting and escalated else 0.0,
        verify_queued_s=verifying - escalated if verifying and escalated else 0.0,
        remaining_s=float(raw[b"deadline_at"]) - now,
        num_lost=int(raw.get(b"num_lost", b"0")),
        alone=raw.get(b"alone") == b"1",
        work_tokens=int(raw.get(b"work", b"0")),
    )
