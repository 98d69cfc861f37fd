"""What the routes work with: built once a process by `gateway.__main__` and handed to every route file."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from broker.api_keys import ApiKeys
from broker.background import Loop
from broker.batches import BatchStore
from broker.presence import Presence
from broker.records import RequestStore
from broker.router import Router
from broker.streams import EventHub
from config.settings import BackpressureSettings, GatewaySettings
from gateway.admission import Admission
from gateway.files import Files
from gateway.holders import Holders
from gateway.owned import OwnedRequests
from gateway.slots import StreamSlots


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
    #: Seconds since the epoch, the same on all hosts: what one gateway writes down another compares.
    clock: Callable[[], float]
    #: None where there is no prefix index.
    holders: Holders | None = None
    #: What goes on in this process beside requests; its health is told from them.
    loops: tuple[Loop, ...] = ()

    @cached_property
    def store(self) -> OwnedRequests:
        """The requests of who asks."""
        return OwnedRequests(self.all_requests)

    @cached_property
    def slots(self) -> StreamSlots:
        """The places for streams and waits, shared by all routes of this process."""
        return StreamSlots(self.settings.max_streams)

    @cached_property
    def transfers(self) -> StreamSlots:
        """The places for uploads and downloads of files: their clients set the pace."""
        return StreamSlots(self.settings.max_transfers, "uploads and downloads")
