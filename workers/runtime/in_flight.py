"""What a worker has in hand: its holds, their leases, deadlines, and the events it publishes about them.

A job's thread takes a lease, works, and commits; meanwhile one thread renews all leases and another publishes events
in small batches. When a hold is lost (cancelled, or taken over) or its deadline passes, the engine is told to stop.
Leases are renewed for as long as the engine moves: one that hangs loses them as a dead process does.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from redis.exceptions import RedisError

from broker.background import Loop
from broker.connection import REDIS_AWAY
from broker.leases import Lease
from broker.request_store import RequestStore
from schemas.events import AcceptedText, CorrectedText, DraftText, Event, WrittenText
from workers.runtime.stall_detector import StallDetector

log = logging.getLogger(__name__)

#: Seconds for which pieces of text are gathered before they are published together, at least.
GATHER_S = 0.05
#: The same at most, in seconds, however long publishing takes.
MOST_GATHER_S = 0.4
#: The most of its time that publishing may take. On a CPU that an engine's threads fill, every millisecond of it holds
#: them all up; with many requests in flight the pieces get longer instead.
PUBLISHING_SHARE = 0.02
#: Seconds between renewals of leases, at most: a cancelled request is noticed at one at the latest.
RENEW_S = 0.5

#: Seconds for which a request that was lost before keeps others out of its worker at most. One that writes nothing that
#: can be read, or very slowly, must not stop them for longer; what ends an engine does so at its beginning.
ALONE_S = 5.0

_TEXT = (DraftText, AcceptedText, CorrectedText, WrittenText)


@dataclass
class _InHand:
    """What is known of one lease."""

    #: By `time.monotonic`.
    deadline: float
    events: list[Event] = field(default_factory=list)
    #: The commit takes the events with it; nothing more is published by itself.
    closing: bool = False
    #: The engine is to stop working on it.
    unwanted: bool = False
    #: Because its deadline has passed.
    late: bool = False
    #: Because this kept its events from being published.
    unpublishable: Exception | None = None
    #: Called once, soon after the engine has written its first text, or after `ALONE_S`.
    end_sole_use: Callable[[], None] | None = None
    has_text: bool = False
    #: By `time.monotonic`.
    began_s: float = field(default_factory=time.monotonic)


class InFlight:
    """The requests that this worker has in hand. All methods may be called from any thread.

    `progress` is what the engine has done so far for a request, by its work id, as a number that grows; `hung` is
    called once, after `stall_s` in which it grew for none, when every hold has been surrendered.
    """

    def __init__(
        self,
        store: RequestStore,
        stop_engine: Callable[[str], None],
        lease_s: float,
        *,
        progress: Callable[[str], int],
        stall_s: float,
        hung: Callable[[], None],
    ) -> None:
        self._store = store
        self._stop_engine = stop_engine
        self._progress = progress
        self._stall_s = stall_s
        self._hung = hung
        self._in_hand: dict[Lease, _InHand] = {}
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._empty = threading.Condition(self._lock)
        self._watch = StallDetector(stall_s)
        #: The engine hangs: nothing more is to be taken up.
        self.has_hung = False
        #: Set when the worker is to hand back what it holds.
        self.stopping = threading.Event()
        #: What publishes events and what renews leases, once they are started.
        self.loops = (
            Loop("event-publisher", self._publish, every_s=GATHER_S),
            Loop("lease-renewer", self._renew, every_s=min(RENEW_S, lease_s / 3)),
        )

    def start(self) -> None:
        """Start renewing and publishing."""
        for loop in self.loops:
            loop.start()

    def close(self) -> None:
        """Stop renewing and publishing; what is still held lapses."""
        for loop in self.loops:
            loop.close()

    def __len__(self) -> int:
        return len(self._in_hand)

    @contextmanager
    def holding(
        self, lease: Lease, remaining_s: float, end_sole_use: Callable[[], None] | None = None
    ) -> Iterator[None]:
        """Renew the hold's lease, publish its events and keep its deadline while the block runs.

        `end_sole_use` is called once, on a thread of this object, soon after the engine wrote its first text, or when
        it has written none for `ALONE_S`.
        """
        late = remaining_s <= 0
        deadline = time.monotonic() + remaining_s
        with self._lock:
            unwanted = late or self.stopping.is_set()
            self._in_hand[lease] = _InHand(deadline, unwanted=unwanted, late=late, end_sole_use=end_sole_use)
        try:
            yield
        finally:
            with self._lock:
                self._in_hand.pop(lease, None)
                self._empty.notify_all()

    def say(self, lease: Lease, event: Event) -> None:
        """Publish the event soon. Does not block; events of one hold keep their order."""
        with self._lock:
            held = self._in_hand.get(lease)
            if held is not None and not held.closing:
                held.has_text = held.has_text or isinstance(event, _TEXT)
                _append(held.events, event)

    def unsaid(self, lease: Lease) -> list[Event]:
        """What is not published yet, to go into the commit; after this nothing more is published by itself.

        Idempotent, so that a commit can be tried again.
        """
        with self._sending, self._lock:
            held = self._in_hand[lease]
            held.closing = True
            return list(held.events)

    def rest(self, lease: Lease) -> None:
        """The engine is done with it: only the commit is left, and what it will do no more tells whether it hangs."""
        with self._lock:
            self._in_hand[lease].closing = True

    def is_unwanted(self, lease: Lease) -> bool:
        """Whether the engine is not to work on it (any more): lost, late, or the worker is stopping."""
        with self._lock:
            return self._in_hand[lease].unwanted

    def is_late(self, lease: Lease) -> bool:
        """Whether that is because its deadline has passed."""
        with self._lock:
            return self._in_hand[lease].late

    def unpublishable(self, lease: Lease) -> Exception | None:
        """What kept the request's events from being published, where something other than Redis's absence did."""
        with self._lock:
            return self._in_hand[lease].unpublishable

    def wait_until_empty(self, timeout_s: float) -> bool:
        """Block until nothing is in hand. False after the timeout."""
        with self._lock:
            return self._empty.wait_for(lambda: not self._in_hand, timeout_s)

    def stop_all(self) -> None:
        """Tell the engine to stop whatever is in hand."""
        self.stopping.set()
        with self._lock:
            holds = list(self._in_hand)
        for lease in holds:
            self.stop(lease)

    def stop(self, lease: Lease) -> None:
        """Tell the engine to stop it, if it is still in hand. Idempotent."""
        with self._lock:
            held = self._in_hand.get(lease)
            if held is None:  # its own job has just finished it
                return
            held.unwanted = True
        self._stop_engine(lease.work_id)

    def _publish(self) -> float:
        """Publish what was gathered; the seconds for which to gather again."""
        began = time.monotonic()
        self._stop_the_late()
        self._end_sole_uses()
        with self._sending:
            with self._lock:
                batches = [(lease, held.events) for lease, held in self._in_hand.items() if self._has_news(held)]
                for lease, _ in batches:
                    self._in_hand[lease].events = []
            if batches:
                self._send(batches)
        return min(max(GATHER_S, (time.monotonic() - began) / PUBLISHING_SHARE), MOST_GATHER_S)

    def _end_sole_uses(self) -> None:
        with self._lock:
            now_s = time.monotonic()
            told = [
                held
                for held in self._in_hand.values()
                if held.end_sole_use is not None and (held.has_text or now_s - held.began_s >= ALONE_S)
            ]
            calls = [held.end_sole_use for held in told]
            for held in told:
                held.end_sole_use = None
        for call in calls:
            if call is not None:
                call()

    @staticmethod
    def _has_news(held: _InHand) -> bool:
        return bool(held.events) and not held.closing

    def _stop_the_late(self) -> None:
        now = time.monotonic()
        with self._lock:
            late = [(lease, held) for lease, held in self._in_hand.items() if held.deadline <= now and not held.late]
            for _, held in late:
                held.late = True
        for lease, _ in late:
            self.stop(lease)

    def _send(self, batches: list[tuple[Lease, list[Event]]]) -> None:
        try:
            lost = self._store.append_all(batches)
        except REDIS_AWAY:
            with self._lock:  # they go out with the next batch, or with the commit
                for lease, events in batches:
                    if (held := self._in_hand.get(lease)) is not None:
                        held.events = [*events, *held.events]
            raise
        except Exception as error:  # noqa: BLE001 - one request's events must not hold up those of all others
            if len(batches) > 1:
                for batch in batches:
                    self._send([batch])
            else:
                self._cannot_publish(batches[0][0], error)
            return
        for lease in lost:
            self._give_up(lease)

    def _cannot_publish(self, lease: Lease, error: Exception) -> None:
        log.error("events_unpublishable request_id=%s error=%r", lease.request_id, error)
        with self._lock:
            if (held := self._in_hand.get(lease)) is not None:
                held.unpublishable = error
        self.stop(lease)

    def _give_up(self, lease: Lease) -> None:
        log.info("hold_lost request_id=%s attempt=%s", lease.request_id, lease.attempt)
        self.stop(lease)

    def _renew(self) -> None:
        with self._lock:
            wanted = [(lease, held.closing) for lease, held in self._in_hand.items() if not held.unwanted]
        holds = [lease for lease, _ in wanted]
        in_engine = [lease.work_id for lease, closing in wanted if not closing]
        if self._watch.is_stalled({work_id: self._progress(work_id) for work_id in in_engine}, time.monotonic()):
            self._surrender_all(holds)
            return
        for lease in self._store.renew(holds):
            self._give_up(lease)

    def _surrender_all(self, holds: list[Lease]) -> None:
        log.error("engine_hung requests=%d stall_s=%g", len(holds), self._stall_s)
        self.has_hung = True
        try:
            for lease in holds:
                self._store.surrender(lease, f"its engine did nothing for {self._stall_s:g} s")
        except RedisError as error:
            log.warning("redis_away error=%s", error)  # then the leases lapse
        self._hung()


def _append(waiting: list[Event], event: Event) -> None:
    """Add the event, as part of the last one where that is text which it continues."""
    last = waiting[-1] if waiting else None
    if isinstance(event, _TEXT) and isinstance(last, type(event)) and last.position + len(last.text) == event.position:
        waiting[-1] = last.model_copy(update={"text": last.text + event.text})
    else:
        waiting.append(event)
