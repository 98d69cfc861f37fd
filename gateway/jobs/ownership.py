"""The request store as who asks may use it: what is another's is not there."""

from collections.abc import Mapping, Sequence

from broker.backpressure import Load
from broker.idempotency import Idempotency
from broker.leases import Record
from broker.request_store import RequestStore
from broker.states import State
from gateway.http.authentication import may_see
from schemas.requests import AcceptedRequest
from schemas.routing_decision import RoutingDecision


class OwnedRequests:
    """What routes get instead of the store, so that none can forget to ask whose a request is."""

    def __init__(self, store: RequestStore) -> None:
        self._store = store

    def read(self, request_id: str) -> Record | None:
        """The record, or None where there is none for who asks."""
        record = self._store.read(request_id)
        return record if record is not None and may_see(record.owner) else None

    def state(self, request_id: str) -> State | None:
        """The state alone, or None where there is none for who asks."""
        owner = self._store.owner(request_id)
        return self._store.state(request_id) if owner is not None and may_see(owner) else None

    def cancel(self, request_id: str) -> bool:
        """Cancel the request. False where it had finished, or is not there for who asks."""
        owner = self._store.owner(request_id)
        return owner is not None and may_see(owner) and self._store.cancel(request_id)

    def delete(self, request_id: str) -> bool:
        """Forget the request. False where it is not there for who asks."""
        owner = self._store.owner(request_id)
        if owner is None or not may_see(owner):
            return False
        self._store.delete(request_id)
        return True

    def is_gone(self, request_id: str) -> bool:
        """Whether it was there for who asks, and its result has expired."""
        owner = self._store.owner_of_gone(request_id)
        return owner is not None and may_see(owner)

    def create_all(
        self, requests: Sequence[tuple[AcceptedRequest, RoutingDecision | None]], idempotency: Idempotency | None
    ) -> str:
        """See `RequestStore.create_all`."""
        return self._store.create_all(requests, idempotency)

    def idempotent(self, idempotency: Idempotency) -> str | None:
        """See `RequestStore.idempotent`. The key's owner is part of it."""
        return self._store.idempotent(idempotency)

    def quarantined(self, request: AcceptedRequest) -> str | None:
        """See `RequestStore.quarantined`."""
        return self._store.quarantined(request)

    def load(self, owner: str) -> Load:
        """See `RequestStore.load`."""
        return self._store.load(owner)

    def counters(self) -> Mapping[str, int]:
        """See `RequestStore.counters`."""
        return self._store.counters()

    def waiting(self) -> Mapping[str, int]:
        """See `RequestStore.waiting`."""
        return self._store.waiting()
