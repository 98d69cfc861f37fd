"""What a worker has of a request, and what a reader sees of it.

A `Lease` is the state and attempt that fence each commit of the worker that took the request up.
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

#: The largest number of an attempt: what Redis's scripts count exactly.
MOST_ATTEMPTS = 2**53


def read_attempt(raw: bytes) -> int:
    """The number of an attempt as a record has it. Raises `ValueError` for what no script has written."""
    attempt = int(raw)
    if not 0 <= attempt <= MOST_ATTEMPTS:
        raise ValueError(f"{attempt} is not the number of an attempt")
    return attempt


@dataclass(frozen=True)
class Lifetimes:
    """How long things are kept, in seconds, and how often a request may be taken over."""

    result_ttl_s: int
    lease_s: float
    max_attempts: int
    gone_ttl_s: int = 86_400
    quarantine_s: int = 86_400

    @classmethod
    def configured(cls, requests: RequestSettings) -> Self:
        """As the settings say."""
        return cls(
            result_ttl_s=requests.result_ttl_s,
            lease_s=requests.lease_s,
            max_attempts=requests.max_attempts,
            gone_ttl_s=requests.gone_ttl_s,
            quarantine_s=requests.quarantine_s,
        )


@dataclass(frozen=True)
class Lease:
    """A worker's lease on a request."""

    request_id: str
    tier: Tier
    attempt: int
    #: The worker's name in lines and routes: its id in its present life.
    worker: str

    @property
    def worker_id(self) -> str:
        """The worker as events and results name it."""
        return self.worker.partition("@")[0]

    @property
    def work_id(self) -> str:
        """What an engine knows this attempt by: the request may come back while its last one still runs there."""
        return f"{self.request_id}-{self.attempt}"


@dataclass(frozen=True)
class LeasedRequest:
    """A request that a worker has taken up, with what earlier stages left."""

    lease: Lease
    request: AcceptedRequest
    draft: Draft | None
    #: Seconds since the request was accepted, and the seconds that each earlier stage took.
    age_s: float
    queued_s: float
    drafting_s: float
    verify_queued_s: float
    #: Seconds until the deadline; not above 0 when it has passed.
    remaining_s: float
    #: Earlier attempts that ended with their workers.
    num_lost: int = 0
    #: Whether this attempt is to be made with nothing else in the worker's hands, from its beginning to its end.
    alone: bool = False
    #: Tokens of work that it was taken to be when it was routed.
    work_tokens: int = 0


@dataclass(frozen=True)
class Record:
    """A request as its reader sees it."""

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
    """A record's fields as a reader sees them. Raises `UndecodableMessage`."""
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
    """A request as its record was when a worker took it up, at `now` of Redis's clock. Raises `UndecodableMessage`."""
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
