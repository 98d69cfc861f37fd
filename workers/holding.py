"""What a worker has in hand: its holds, their leases, the events it publishes about them.

A job's thread takes a hold, works, and commits; meanwhile one thread renews all leases and another publishes events
in small batches. When Redis says that a hold is lost (cancelled, or taken over), the engine is told to stop.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from redis.exceptions import RedisError

from broker.records import Hold, RequestStore
from schemas.events import AcceptedText, CorrectedText, DraftText, Event, WrittenText

log = logging.getLogger(__name__)

#: Seconds for which pieces of text are gathered before they are published together, at least.
GATHER_S = 0.05
#: The same at most, in seconds, however long publishing takes.
MOST_GATHER_S = 0.4
#: The most of its time that publishing may take. On a CPU that an engine's threads fill, every millisecond of it holds
#: them all up; with many requests in flight the pieces get longer instead.
PUBLISHING_SHARE = 0.02

_TEXT = (DraftText, AcceptedText, CorrectedText, WrittenText)


class Holdings:
    """The requests that this worker has in hand. All methods may be called from any thread."""

    def __init__(self, store: RequestStore, stop_engine: Callable[[str], None], lease_s: float) -> None:
        self._store = store
        self._stop_engine = stop_engine
        self._lease_s = lease_s
        self._pending: dict[Hold, list[Event]] = {}
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._empty = threading.Condition(self._lock)
        self._ended = threading.Event()
        self._threads = [
            threading.Thread(target=self._publish, name="event-publisher", daemon=True),
            threading.Thread(target=self._renew, name="lease-renewer", daemon=True),
        ]

    def start(self) -> None:
        """Start renewing and publishing."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop renewing and publishing; what is still held lapses."""
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def __len__(self) -> int:
        return len(self._pending)

    @contextmanager
    def holding(self, hold: Hold) -> Iterator[None]:
        """Renew the hold's lease and publish its events while the block runs."""
        with self._lock:
            self._pending[hold] = []
        try:
            yield
        finally:
            with self._lock:
                self._pending.pop(hold, None)
                self._empty.notify_all()

    def say(self, hold: Hold, event: Event) -> None:
        """Publish the event soon. Does not block; events of one hold keep their order."""
        with self._lock:
            waiting = self._pending.get(hold)
            if waiting is not None:
                _append(waiting, event)

    def unsaid(self, hold: Hold) -> list[Event]:
        """Take what is not published yet, to go into the commit; after this nothing more is published by itself."""
        with self._sending, self._lock:
            waiting = self._pending[hold]
            self._pending[hold] = []
            return waiting

    def wait_until_empty(self, timeout_s: float) -> bool:
        """Block until nothing is in hand. False after the timeout."""
        with self._lock:
            return self._empty.wait_for(lambda: not self._pending, timeout_s)

    def stop_all(self) -> None:
        """Tell the engine to stop whatever is in hand."""
        with self._lock:
            holds = list(self._pending)
        for hold in holds:
            self._stop_engine(hold.work_id)

    def _publish(self) -> None:
        pause_s = GATHER_S
        while not self._ended.wait(pause_s):
            began = time.monotonic()
            with self._sending:
                with self._lock:
                    batches = [(hold, events) for hold, events in self._pending.items() if events]
                    for hold, _ in batches:
                        self._pending[hold] = []
                if batches:
                    self._send(batches)
            pause_s = min(max(GATHER_S, (time.monotonic() - began) / PUBLISHING_SHARE), MOST_GATHER_S)

    def _send(self, batches: list[tuple[Hold, list[Event]]]) -> None:
        try:
            lost = self._store.append_all(batches)
        except RedisError as error:
            log.warning("events_not_published requests=%d error=%s", len(batches), error)
            return
        for hold in lost:
            self._give_up(hold)

    def _give_up(self, hold: Hold) -> None:
        with self._lock:
            if hold not in self._pending:  # its own job has just finished it
                return
        log.info("hold_lost request_id=%s attempt=%s", hold.request_id, hold.attempt)
        self._stop_engine(hold.work_id)

    def _renew(self) -> None:
        while not self._ended.wait(self._lease_s / 3):
            with self._lock:
                holds = list(self._pending)
            try:
                for hold in self._store.renew(holds):
                    self._give_up(hold)
                for request_id in self._store.reap():
                    log.info("request_pushed_again request_id=%s", request_id)
            except RedisError as error:
                log.warning("redis_away error=%s", error)


def _append(waiting: list[Event], event: Event) -> None:
    """Add the event, as part of the last one where that is text which it continues."""
    last = waiting[-1] if waiting else None
    if isinstance(event, _TEXT) and isinstance(last, type(event)) and last.position + len(last.text) == event.position:
        waiting[-1] = last.model_copy(update={"text": last.text + event.text})
    else:
        waiting.append(event)
