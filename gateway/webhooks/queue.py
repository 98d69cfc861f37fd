"""Which of the webhooks that were taken up is sent next, so that a slow receiver delays its own alone. Pure.

What is under way is bounded in all, for each owner and for each receiver; what finds no place waits a little while for
its receiver, and is given back where that does not help.
"""

from collections import Counter, OrderedDict, deque
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar


class Addressed(Protocol):
    """A webhook: whose it is, and who is to be called."""

    @property
    def owner(self) -> str:
        """The owner of the request that it tells of."""

    @property
    def receiver(self) -> str:
        """Host and port of the address."""


DueT = TypeVar("DueT", bound=Addressed)


@dataclass(frozen=True)
class Bounds:
    """How many webhooks at once."""

    #: Calls under way, in all, of one owner and to one receiver.
    in_flight: int = 128
    owner_in_flight: int = 32
    receiver_in_flight: int = 4
    #: Webhooks that wait for a place, in all and for one receiver.
    held: int = 4096
    receiver_held: int = 128
    #: Seconds for which one waits at most. With the longest call it must stay below the time for which whoever takes a
    #: webhook up has it (`broker.outbox.CLAIM_S`).
    held_s: float = 10.0


#: What one gateway process takes on.
DEFAULT_BOUNDS = Bounds()


@dataclass(frozen=True)
class _Held(Generic[DueT]):
    due: DueT
    until_s: float


class WebhookQueue(Generic[DueT]):
    """What was taken up and has not ended. Not for two threads at once; times are of any clock that only grows."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        #: What waits, by receiver; the receiver that was served last comes last.
        self._lines: OrderedDict[str, deque[_Held[DueT]]] = OrderedDict()
        self._num_held = 0
        self._owners: Counter[str] = Counter()
        self._receivers: Counter[str] = Counter()

    @property
    def num_in_flight(self) -> int:
        """Calls under way."""
        return self._owners.total()

    @property
    def has_room(self) -> bool:
        """Whether more may be held, for a receiver that holds none."""
        return self._num_held < self._bounds.held

    def hold(self, due: DueT, now_s: float) -> bool:
        """Take it in; False where as many wait for its receiver, or in all, as may."""
        line = self._lines.get(due.receiver, ())
        if not self.has_room or len(line) >= self._bounds.receiver_held:
            return False
        self._lines.setdefault(due.receiver, deque()).append(_Held(due, now_s + self._bounds.held_s))
        self._num_held += 1
        return True

    def begin(self) -> DueT | None:
        """The next one that may be sent now; it is under way from here on. None where there is none."""
        if self.num_in_flight >= self._bounds.in_flight:
            return None
        for receiver, line in self._lines.items():
            if self._receivers[receiver] >= self._bounds.receiver_in_flight:
                continue
            for held in line:
                if self._owners[held.due.owner] < self._bounds.owner_in_flight:
                    self._remove(receiver, held)
                    if receiver in self._lines:
                        self._lines.move_to_end(receiver)
                    self._owners[held.due.owner] += 1
                    self._receivers[receiver] += 1
                    return held.due
        return None

    def ended(self, due: DueT) -> None:
        """It is under way no longer."""
        for counter, name in ((self._owners, due.owner), (self._receivers, due.receiver)):
            counter[name] -= 1
            if not counter[name]:
                del counter[name]

    def give_back(self, now_s: float) -> list[DueT]:
        """Those that have waited for as long as they may; they are not held any more."""
        late = [(receiver, held) for receiver, line in self._lines.items() for held in line if held.until_s <= now_s]
        for receiver, held in late:
            self._remove(receiver, held)
        return [held.due for _, held in late]

    def _remove(self, receiver: str, held: _Held[DueT]) -> None:
        line = self._lines[receiver]
        line.remove(held)
        self._num_held -= 1
        if not line:
            del self._lines[receiver]
