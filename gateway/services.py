"""What the routes work with: built once a process by `gateway.__main__` and handed to every route file."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

from broker.api_keys import ApiKeys
from broker.background import Loop
from broker.batches import BatchStore
from broker.event_streams import EventHub
from broker.idempotency import IdempotencyKeys
from broker.presence import Presence
from broker.request_store import RequestStore
from broker.router import Router
from config.settings import BackpressureSettings, GatewaySettings
from gateway.batches.files import Files
from gateway.http.authentication import may_see
from gateway.http.stream_limits import StreamLimits
from gateway.jobs.prefix_lookup import PrefixLookup
from gateway.jobs.request_validation import Admission


@dataclass(frozen=True)
class Services:
    """What the routes work with."""

    settings: GatewaySettings
    backpressure: BackpressureSettings
    admission: Admission
    #: For what the gateway itself does; routes use `store`.
    all_requests: RequestStore
    hub: EventHub
    presence: Presence
    api_keys: ApiKeys
    router: Router
    batches: BatchStore
    files: Files
    idempotency_keys: IdempotencyKeys
    #: Seconds since the epoch, the same on all hosts: what one gateway writes down another compares.
    clock: Callable[[], float]
    #: None where there is no prefix index.
    holders: PrefixLookup | None = None
    #: What goes on in this process beside requests; its health is told from them. Those that themselves work with
    #: these services are added by whoever builds both.
    loops: list[Loop] = field(default_factory=list)

    @cached_property
    def store(self) -> RequestStore:
        """The requests that whoever asks may see: routes cannot forget to check."""
        return self.all_requests.seen_by(may_see)

    @cached_property
    def slots(self) -> StreamLimits:
        """The places for streams and waits, shared by all routes of this process."""
        return StreamLimits(self.settings.max_streams)

    @cached_property
    def transfers(self) -> StreamLimits:
        """The places for uploads and downloads of files: their clients set the pace."""
        return StreamLimits(self.settings.max_transfers, "uploads and downloads")
