"""What the routes work with: built once a process by `gateway.__main__` and handed to every route file."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

from broker.api_keys import ApiKeys
from broker.background import Loop
from broker.batches import BatchStore
from broker.calibrations import CalibrationStore
from broker.event_streams import EventHub
from broker.idempotency import IdempotencyKeys
from broker.presence import Presence
from broker.request_store import RequestStore
from broker.router import Router
from config.settings import BackpressureSettings, GatewaySettings
from gateway.batches.files import DiskFiles
from gateway.http.authentication import may_see
from gateway.http.stream_limits import StreamLimits
from gateway.jobs.request_validation import Admission
from gateway.monitoring.prefix_lookup import PrefixLookup
from gateway.openai.models import ModelTable


@dataclass(frozen=True)
class Services:
    """See the module."""

    settings: GatewaySettings
    backpressure: BackpressureSettings
    admission: Admission
    #: Everybody's requests, for what the gateway itself does; routes use `store`.
    all_requests: RequestStore
    hub: EventHub
    presence: Presence
    api_keys: ApiKeys
    router: Router
    batches: BatchStore
    calibrations: CalibrationStore
    files: DiskFiles
    idempotency_keys: IdempotencyKeys
    #: Seconds since the epoch, the same on all hosts: one gateway compares times that another wrote.
    clock: Callable[[], float]
    #: None where there is no prefix index.
    prefix_lookup: PrefixLookup | None = None
    #: The background threads of this process, which its health depends on. `gateway.__main__` adds those that
    #: themselves work with these services.
    loops: list[Loop] = field(default_factory=list)

    @cached_property
    def store(self) -> RequestStore:
        """The requests that the caller may see: routes cannot forget to check."""
        return self.all_requests.seen_by(may_see)

    @cached_property
    def models(self) -> ModelTable:
        """The model names of OpenAI's API. Raises ValueError for an alias of an unknown policy."""
        return ModelTable(self.admission.policies, self.settings.model_aliases)

    @cached_property
    def streams(self) -> StreamLimits:
        """Limits streams and waits, of all routes of this process together."""
        return StreamLimits(self.settings.max_streams)

    @cached_property
    def transfers(self) -> StreamLimits:
        """Limits uploads and downloads of files, whose clients set the pace."""
        return StreamLimits(self.settings.max_transfers, "uploads and downloads")
