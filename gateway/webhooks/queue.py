"""Which webhook is called next, so that a slow receiver delays only its own webhooks. Pure.

Calls in flight are limited in all, for each owner and for each receiver. A webhook beyond the limits waits here for a
while; if that is not enough, it goes back to the outbox.
"""

from collections import Counter, OrderedDict, deque
from dataclasses import dataclass
from typing import Protocol


class DueWebhook(Protocol):
    """A webhook that is to be called (`broker.outbox.Due`)."""

    @property
    def request_id(self) -> str:
        """The request that has finished."""

    @property
    def owner(self) -> str:
        """The owner of the request."""

    @property
    def receiver(self) -> str:
        """Host and port of the address to call."""


@dataclass(frozen=True)
class Limits:
    """How many webhooks at once."""

    #: Calls in flight: in all, of one owner and to one receiver.
    in_flight: int = 128
    owner_in_flight: int = 32
    receiver_in_flight: int = 4
    #: The most webhooks that may wait, in total and for one receiver.
    waiting: int = 4096
    receiver_waiting: int = 128
    #: The longest wait in seconds. With the longest call it must stay below the time for which the outbox gives a
    #: webhook to nobody else (`broker.outbox.CLAIM_S`).
    waiting_s: float = 10.0


#: The limits of one gateway process.
DEFAULT_LIMITS = Limits()


@dataclass(frozen=True)
class _Waiting:
    due: DueWebhook
    until_s: float


class WebhookQueue:
    """Webhooks that wait or are in flight. Not thread-safe. Times are `time.monotonic`'s."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        #: Waiting webhooks by receiver; the receiver that was called last comes last.
        self._queues: OrderedDict[str, deque[_Waiting]] = OrderedDict()
        self._num_waiting = 0
        self._owners: Counter[str] = Counter()
        self._receivers: Counter[str] = Counter()

    @property
    def num_in_flight(self) -> int:
        """Calls in flight."""
        return self._owners.total()

    @property
    def has_room(self) -> bool:
        """Whether more may wait, for a receiver with an empty queue."""
        return self._num_waiting < self._limits.waiting

    def put(self, due: DueWebhook, now_s: float) -> bool:
        """Queue the webhook; False where too many wait already, for its receiver or in all."""
        if not self.has_room or len(self._queues.get(due.receiver, ())) >= self._limits.receiver_waiting:
            return False
        self._queues.setdefault(due.receiver, deque()).append(_Waiting(due, now_s + self._limits.waiting_s))
        self._num_waiting += 1
        return True

    def start_next(self) -> DueWebhook | None:
        """The next webhook that the limits allow, which counts as in flight from now on; None if there is none."""
        if self.num_in_flight >= self._limits.in_flight:
            return None
        for receiver, queue in self._queues.items():
            if self._receivers[receiver] >= self._limits.receiver_in_flight:
                continue
            for waiting in queue:
                if self._owners[waiting.due.owner] < self._limits.owner_in_flight:
                    self._remove(receiver, waiting)
                    if receiver in self._queues:
                        self._queues.move_to_end(receiver)
                    self._owners[waiting.due.owner] += 1
                    self._receivers[receiver] += 1
                    return waiting.due
        return None

    def ended(self, due: DueWebhook) -> None:
        """The call is not in flight any more."""
        for counter, name in ((self._owners, due.owner), (self._receivers, due.receiver)):
            counter[name] -= 1
            if not counter[name]:
                del counter[name]

    def take_expired(self, now_s: float) -> list[DueWebhook]:
        """Remove and return the webhooks that have waited for too long."""
        expired = [
            (name, waiting) for name, queue in self._queues.items() for waiting in queue if waiting.until_s <= now_s
        ]
        for receiver, waiting in expired:
            self._remove(receiver, waiting)
        return [waiting.due for _, waiting in expired]

    def _remove(self, receiver: str, waiting: _Waiting) -> None:
        queue = self._queues[receiver]
        queue.remove(waiting)
        self._num_waiting -= 1
        if not queue:
            del self._queues[receiver]
