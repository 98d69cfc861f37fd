"""The requests that a worker works on: their leases, their deadlines and the events that are published about them.

A job's thread works on a request and commits it; meanwhile one thread renews all leases and another publishes events in
small batches. When a lease is lost (the request was cancelled, or taken over) or a deadline passes, the engine is told
to stop. Leases are renewed for as long as the engine makes progress: one that hangs loses them as a dead process does.
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

#: Seconds for which pieces of text are gathered before they are published together: at least, and at most, however
#: long publishing takes.
GATHER_S, MOST_GATHER_S = 0.05, 0.4
#: The largest share of its thread's time that publishing may take. On a CPU that an engine's threads fill, every
#: millisecond of it stops them all; with many requests in flight the pieces get longer instead.
PUBLISHING_SHARE = 0.02
#: Seconds between renewals of leases, at most; a cancelled request is noticed at a renewal at the latest.
RENEW_S = 0.5
#: Seconds for which a request that was lost before keeps others out of its worker at most. One that writes no text, or
#: very slowly, must not stop them for longer; a prompt that ends an engine does so at its beginning.
ALONE_S = 5.0

_TEXT = (DraftText, AcceptedText, CorrectedText, WrittenText)


@dataclass
class _Entry:
    """What is known of one request."""

    #: By `time.monotonic`.
    deadline: float
    events: list[Event] = field(default_factory=list)
    #: The commit takes the remaining events with it; nothing more is published before.
    committing: bool = False
    #: The engine is to stop working on it.
    stopped: bool = False
    #: It is stopped because its deadline has passed.
    late: bool = False
    #: It is stopped because this kept its events from being published.
    publishing_error: Exception | None = None
    #: Lets others use the engine beside it; called once, soon after its first text, or after `ALONE_S`.
    share: Callable[[], None] | None = None
    has_text: bool = False
    #: By `time.monotonic`.
    began_s: float = field(default_factory=time.monotonic)


class InFlight:
    """Requests by their leases. All methods may be called from any thread.

    `progress` gives what the engine has done so far for a work id, as a number that grows. `hung` is called once, after
    `stall_s` in which it grew for no request, when every lease has been surrendered.
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
        self._entries: dict[Lease, _Entry] = {}
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._empty = threading.Condition(self._lock)
        self._watch = StallDetector(stall_s)
        #: Whether the engine hangs; then no more requests are to be taken.
        self.has_hung = False
        #: Set when the worker is to hand its requests back.
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
        """Stop renewing and publishing; leases that are left lapse."""
        for loop in self.loops:
            loop.close()

    def __len__(self) -> int:
        return len(self._entries)

    @contextmanager
    def track(self, lease: Lease, remaining_s: float, share: Callable[[], None] | None = None) -> Iterator[None]:
        """Renew the lease, publish events and watch the deadline while the block runs.

        `share` is called once, on a thread of this object, soon after the engine wrote its first text, or when it has
        written none for `ALONE_S`.
        """
        late = remaining_s <= 0
        deadline = time.monotonic() + remaining_s
        with self._lock:
            stopped = late or self.stopping.is_set()
            self._entries[lease] = _Entry(deadline, stopped=stopped, late=late, share=share)
        try:
            yield
        finally:
            with self._lock:
                self._entries.pop(lease, None)
                self._empty.notify_all()

    def publish(self, lease: Lease, event: Event) -> None:
        """Publish the event soon. Does not block; a request's events keep their order."""
        with self._lock:
            entry = self._entries.get(lease)
            if entry is not None and not entry.committing:
                entry.has_text = entry.has_text or isinstance(event, _TEXT)
                _append(entry.events, event)

    def unpublished(self, lease: Lease) -> list[Event]:
        """The events that the commit must take with it; from now on none is published before.

        Idempotent, so that a commit can be tried again.
        """
        with self._sending, self._lock:
            entry = self._entries[lease]
            entry.committing = True
            return list(entry.events)

    def settle(self, lease: Lease) -> None:
        """Note that only the commit is left: whether this request makes progress no longer says if the engine hangs."""
        with self._lock:
            self._entries[lease].committing = True

    def is_stopped(self, lease: Lease) -> bool:
        """Whether the engine is to stop working on it: lease lost, deadline passed, or the worker is stopping."""
        with self._lock:
            return self._entries[lease].stopped

    def is_late(self, lease: Lease) -> bool:
        """Whether its deadline has passed."""
        with self._lock:
            return self._entries[lease].late

    def publishing_error(self, lease: Lease) -> Exception | None:
        """What kept the request's events from being published, other than Redis being away; or None."""
        with self._lock:
            return self._entries[lease].publishing_error

    def wait_until_empty(self, timeout_s: float) -> bool:
        """Block until no request is left. False after the timeout."""
        with self._lock:
            return self._empty.wait_for(lambda: not self._entries, timeout_s)

    def stop_all(self) -> None:
        """Tell the engine to stop all requests, for good."""
        self.stopping.set()
        with self._lock:
            leases = list(self._entries)
        for lease in leases:
            self.stop(lease)

    def stop(self, lease: Lease) -> None:
        """Tell the engine to stop it, if it is still here. Idempotent."""
        with self._lock:
            entry = self._entries.get(lease)
            if entry is None:  # its job has just committed
                return
            entry.stopped = True
        self._stop_engine(lease.work_id)

    def _publish(self) -> float:
        """Publish what was gathered. Returns the seconds for which to gather again."""
        began = time.monotonic()
        self._stop_late()
        self._share()
        with self._sending:
            with self._lock:
                batches = [
                    (lease, entry.events)
                    for lease, entry in self._entries.items()
                    if entry.events and not entry.committing
                ]
                for lease, _ in batches:
                    self._entries[lease].events = []
            if batches:
                self._send(batches)
        return min(max(GATHER_S, (time.monotonic() - began) / PUBLISHING_SHARE), MOST_GATHER_S)

    def _share(self) -> None:
        """Let others use the engine beside requests that were alone for long enough."""
        now_s = time.monotonic()
        with self._lock:
            calls = []
            for entry in self._entries.values():
                if entry.share is not None and (entry.has_text or now_s - entry.began_s >= ALONE_S):
                    calls.append(entry.share)
                    entry.share = None
        for share in calls:
            share()

    def _stop_late(self) -> None:
        now = time.monotonic()
        with self._lock:
            late = [
                (lease, entry) for lease, entry in self._entries.items() if entry.deadline <= now and not entry.late
            ]
            for _, entry in late:
                entry.late = True
        for lease, _ in late:
            self.stop(lease)

    def _send(self, batches: list[tuple[Lease, list[Event]]]) -> None:
        try:
            lost = self._store.append_all(batches)
        except REDIS_AWAY:
            with self._lock:  # they go out with the next batch, or with the commit
                for lease, events in batches:
                    if (entry := self._entries.get(lease)) is not None:
                        entry.events = [*events, *entry.events]
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
            if (entry := self._entries.get(lease)) is not None:
                entry.publishing_error = error
        self.stop(lease)

    def _give_up(self, lease: Lease) -> None:
        log.info("lease_lost request_id=%s attempt=%s", lease.request_id, lease.attempt)
        self.stop(lease)

    def _renew(self) -> None:
        with self._lock:
            wanted = [(lease, entry.committing) for lease, entry in self._entries.items() if not entry.stopped]
        leases = [lease for lease, _ in wanted]
        in_engine = [lease.work_id for lease, committing in wanted if not committing]
        if self._watch.is_stalled({work_id: self._progress(work_id) for work_id in in_engine}, time.monotonic()):
            self._surrender_all(leases)
            return
        for lease in self._store.renew(leases):
            self._give_up(lease)

    def _surrender_all(self, leases: list[Lease]) -> None:
        log.error("engine_hung requests=%d stall_s=%g", len(leases), self._stall_s)
        self.has_hung = True
        try:
            for lease in leases:
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
