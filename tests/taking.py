"""Requests as a worker takes them, one at a time."""

from broker.leases import LeasedRequest
from broker.request_store import RequestStore
from schemas.policy import Tier


def take_one(store: RequestStore, tier: Tier, worker: str, *, busy: bool = False) -> LeasedRequest | None:
    """The next request of the tier, or None where there is none for this worker; `busy`: it has others in hand."""
    taken = store.take(tier, worker, busy=busy).requests
    return taken[0] if taken else None
