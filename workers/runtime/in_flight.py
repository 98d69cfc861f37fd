"""The requests that a worker works on: their leases, their deadlines and their unpublished events.

Each request is worked on and committed by its job's thread. Meanwhile one thread renews all leases, and another
publishes events in small batches. When a lease is lost (the request was cancelled or taken over) or a deadline passes,
the engine stops working on the request. Leases are renewed only while the engine makes progress, so that a hung engine
loses them as a dead process does.
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

#: The shortest and longest time, in seconds, for which events are gathered before they are published together.
GATHER_S, MOST_GATHER_S = 0.05, 0.4
#: The share of time that publishing should take at most. On a CPU that an engine's threads use fully, publishing delays
#: them all; with many requests in flight, events are gathered for longer instead.
PUBLISHING_SHARE = 0.02
#: The longest time, in seconds, between renewals of leases. A cancelled request is noticed at a renewal at the latest.
RENEW_S = 0.5
#: The most seconds for which a request with lost attempts keeps others out of its worker, so that one that generates
#: slowly does not block them. A prompt that crashes an engine does so early.
ALONE_S = 5.0

_TEXT = (DraftText, AcceptedText, CorrectedText, WrittenText)


@dataclass
class _Entry:
    """One request in flight."""

    #: By `time.monotonic`.
    deadline: float
    #: Not published yet.
    events: list[Event] = field(default_factory=list)
    #: The remaining events are part of the commit; they are not published separately any more.
    committing: bool = False
    #: The engine must stop working on it.
    stopped: bool = False
    #: It is stopped because its deadline has passed.
    late: bool = False
    #: It is stopped because its events could not be published.
    publishing_error: Exception | None = None
    #: Lets the worker run other requests too; called once, soon after the first text, or after `ALONE_S`.
    share: Callable[[], None] | None = None
    has_text: bool = False
    #: By `time.monotonic`.
    began_s: float = field(default_factory=time.monotonic)


class InFlight:
    """Requests by their leases. All methods may be called from any thread.

    `progress` returns a number for a work id that grows while the engine works on it. If it grows for no request in
    `stall_s`, the engine hangs: all leases are surrendered, and `hung` is called once.
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
        #: Whether the engine hangs; then the worker must not take any more requests.
        self.has_hung = False
        #: Set when the worker hands its requests back.
        self.stopping = threading.Event()
        #: The loops that publish events and renew leases.
        self.loops = (
            Loop("event-publisher", self._publish, every_s=GATHER_S),
            Loop("lease-renewer", self._renew, every_s=min(RENEW_S, lease_s / 3)),
        )

    def start(self) -> None:
        """Start renewing and publishing."""
        for loop in self.loops:
            loop.start()

    def close(self) -> None:
        """Stop renewing and publishing. Remaining leases lapse."""
        for loop in self.loops:
            loop.close()

    def __len__(self) -> int:
        return len(self._entries)

    @contextmanager
    def track(self, lease: Lease, remaining_s: float, share: Callable[[], None] | None = None) -> Iterator[None]:
        """Renew the lease, publish events and enforce the deadline for the duration of the block.

        `share` is called once, on a thread of this object, soon after the engine generated the first text, or after
        `ALONE_S` without any.
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
        """Queue the event to be published. Does not block; a request's events keep their order."""
        with self._lock:
            entry = self._entries.get(lease)
            if entry is not None and not entry.committing:
                entry.has_text = entry.has_text or isinstance(event, _TEXT)
                _append(entry.events, event)

    def unpublished(self, lease: Lease) -> list[Event]:
        """The unpublished events, which become part of the commit: from now on none is published separately.

        Idempotent, so that a commit can be tried again.
        """
        with self._sending, self._lock:
            entry = self._entries[lease]
            entry.committing = True
            return list(entry.events)

    def settle(self, lease: Lease) -> None:
        """Mark the request as left to commit, so that its progress is no longer used to detect a hung engine."""
        with self._lock:
            self._entries[lease].committing = True

    def is_stopped(self, lease: Lease) -> bool:
        """Whether the engine must stop working on it: lease lost, deadline passed, or the worker is stopping."""
        with self._lock:
            return self._entries[lease].stopped

    def is_late(self, lease: Lease) -> bool:
        """Whether its deadline has passed."""
        with self._lock:
            return self._entries[lease].late

    def publishing_error(self, lease: Lease) -> Exception | None:
        """The error because of which the request's events could not be published; not for a Redis that is away."""
        with self._lock:
            return self._entries[lease].publishing_error

    def wait_until_empty(self, timeout_s: float) -> bool:
        """Block until no request is in flight. False after the timeout."""
        with self._lock:
            return self._empty.wait_for(lambda: not self._entries, timeout_s)

    def stop_all(self) -> None:
        """Stop the engine's work on all requests, and on those that are tracked later."""
        self.stopping.set()
        with self._lock:
            leases = list(self._entries)
        for lease in leases:
            self.stop(lease)

    def stop(self, lease: Lease) -> None:
        """Stop the engine's work on the request, if it is in flight. Idempotent."""
        with self._lock:
            entry = self._entries.get(lease)
            if entry is None:  # its job has just committed
                return
            entry.stopped = True
        self._stop_engine(lease.work_id)

    def _publish(self) -> float:
        """Publish the gathered events. Returns the seconds for which to gather the next ones."""
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
        """End the time alone of requests that have text, or that were alone for `ALONE_S`."""
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
            with self._lock:  # they are published with the next batch, or with the commit
                for lease, events in batches:
                    if (entry := self._entries.get(lease)) is not None:
                        entry.events = [*events, *entry.events]
            raise
        except Exception as error:  # noqa: BLE001 - one request's events must not block those of all others
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
            active = [(lease, entry.committing) for lease, entry in self._entries.items() if not entry.stopped]
        leases = [lease for lease, _ in active]
        in_engine = [lease.work_id for lease, committing in active if not committing]
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
            log.warning("redis_away error=%s", error)  # the leases lapse then
        finally:
            self._hung()


def _append(waiting: list[Event], event: Event) -> None:
    """Append the event, or merge it into the last one if it continues that one's text."""
    last = waiting[-1] if waiting else None
    if isinstance(event, _TEXT) and isinstance(last, type(event)) and last.position + len(last.text) == event.position:
        waiting[-1] = last.model_copy(update={"text": last.text + event.text})
    else:
        waiting.append(event)
