"""Reading event streams: one Redis subscription per process wakes all its readers.

A notification is a hint: readers then read the stream itself from their last position, so that a missed notification
costs a delay of `POLL_S` only. Any process can serve any reader at any position.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import msgpack
from redis import Redis

from broker import keys
from broker.background import Loop
from schemas import wire
from schemas.events import FINAL_KINDS, Event, event_adapter

#: Seconds after which a reader polls, in case a notification was missed.
POLL_S = 2.0
#: The position before a stream's first event.
BEGINNING = "0-0"


@dataclass(frozen=True)
class StreamedEvent:
    """An event and its position in the stream, from which an interrupted reader can resume."""

    position: str
    event: Event


class EventSubscription:
    """Collects which of its requests got new events, for one reader. Made by `EventHub.listening`. Thread-safe."""

    def __init__(self, hub: "EventHub") -> None:
        self._hub = hub
        self._request_ids: set[str] = set()
        self._pending: set[str] = set()
        self._changed = threading.Condition()

    def add(self, request_id: str) -> None:
        """Subscribe to the request. Idempotent."""
        self._request_ids.add(request_id)
        self._hub.subscribe(request_id, self)

    def discard(self, request_id: str) -> None:
        """Unsubscribe from the request. Idempotent."""
        self._request_ids.discard(request_id)
        self._hub.unsubscribe(request_id, self)

    def close(self) -> None:
        """Unsubscribe from all requests. Idempotent."""
        for request_id in list(self._request_ids):
            self.discard(request_id)

    def hear(self, request_id: str) -> None:
        """Tell the reader that the request got an event."""
        with self._changed:
            self._pending.add(request_id)
            self._changed.notify()

    def wait(self, timeout_s: float) -> set[str]:
        """Block until requests got events since the last call, and return them; empty after the timeout."""
        with self._changed:
            self._changed.wait_for(lambda: self._pending, timeout_s)
            pending, self._pending = self._pending, set()
        return pending


class EventHub:
    """Wakes this process's readers when their requests get events. Start its `loop` once per process."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._subscriptions: dict[str, set[EventSubscription]] = defaultdict(set)
        self._lock = threading.Lock()
        #: Receives Redis's notifications. While it does not run, readers poll.
        self.loop = Loop("event-hub", self._receive, every_s=0.0)

    def read(self, request_id: str, after: str = BEGINNING) -> list[StreamedEvent]:
        """The events after the position. Does not wait for more. Raises `UndecodableMessage`."""
        entries = cast(
            "list[tuple[bytes, dict[bytes, bytes]]]",
            self._redis.xrange(keys.events(request_id), min=f"({after}"),
        )
        return [_decoded(entry) for entry in entries]

    def endings(self, request_ids: Iterable[str]) -> dict[str, Event | None]:
        """The final events of those requests that have ended; None for one whose stream has expired. One round trip."""
        ids = list(request_ids)
        with self._redis.pipeline(transaction=False) as pipeline:
            for request_id in ids:
                pipeline.xrevrange(keys.events(request_id), count=1)
            answers = pipeline.execute()
        ended: dict[str, Event | None] = {}
        for request_id, entries in zip(ids, answers, strict=True):
            event = _decoded(entries[0]).event if entries else None
            if event is None or event.type in FINAL_KINDS:
                ended[request_id] = event
        return ended

    def wait_for_end(self, request_id: str, deadline: float, given_up: Callable[[], bool] = lambda: False) -> None:
        """Block until the request has ended, its stream has expired, or the deadline (of `time.monotonic`) has passed.

        Also returns once `given_up` is true, which is called after every `POLL_S` seconds without an event.
        """
        with self.listening([request_id]) as subscription:
            while not self.endings([request_id]) and (remaining := deadline - time.monotonic()) > 0:
                if not subscription.wait(min(remaining, POLL_S)) and given_up():
                    return

    def follow(self, request_id: str, after: str, deadline: float) -> Iterator[StreamedEvent | None]:
        """As `follow_all`, for one request."""
        for item in self.follow_all({request_id: after}, deadline):
            yield None if item is None else item[1]

    def follow_all(self, after: Mapping[str, str], deadline: float) -> Iterator[tuple[str, StreamedEvent] | None]:
        """Yield the events of several requests as they happen, each request's from after its position.

        Ends when all requests have ended or their streams have expired, or at the deadline (of `time.monotonic`).
        Blocks between events, and yields None after every `POLL_S` seconds without one, so that the caller can send a
        keep-alive.
        """
        unfinished = dict(after)
        with self.listening(unfinished) as subscription:
            pending = set(unfinished)
            while unfinished:
                for request_id in sorted(pending & unfinished.keys()):
                    for streamed in self.read(request_id, unfinished[request_id]):
                        yield request_id, streamed
                        unfinished[request_id] = streamed.position
                        if streamed.event.type in FINAL_KINDS:
                            del unfinished[request_id]
                remaining = deadline - time.monotonic()
                if not unfinished or remaining <= 0:
                    return
                pending = subscription.wait(min(remaining, POLL_S))
                if not pending:
                    for request_id in [each for each in unfinished if not self._redis.exists(keys.events(each))]:
                        del unfinished[request_id]
                    pending = set(unfinished)
                    if unfinished:
                        yield None

    @contextmanager
    def listening(self, request_ids: Iterable[str] = ()) -> Iterator[EventSubscription]:
        """A subscription while the block runs. It is notified of events that come after a request was added."""
        subscription = EventSubscription(self)
        for request_id in request_ids:
            subscription.add(request_id)
        try:
            yield subscription
        finally:
            subscription.close()

    def subscribe(self, request_id: str, subscription: EventSubscription) -> None:
        """Notify the subscription of the request's events from now on."""
        with self._lock:
            self._subscriptions[request_id].add(subscription)

    def unsubscribe(self, request_id: str, subscription: EventSubscription) -> None:
        """Stop notifying the subscription of the request's events."""
        with self._lock:
            subscriptions = self._subscriptions.get(request_id, set())
            subscriptions.discard(subscription)
            if not subscriptions:
                self._subscriptions.pop(request_id, None)

    def _receive(self) -> None:
        with self._redis.pubsub(ignore_subscribe_messages=True) as channel:  # type: ignore[no-untyped-call]
            channel.subscribe(keys.notifications())
            while not self.loop.closing.is_set():
                self._wake(channel.get_message(timeout=POLL_S / 2))

    def _wake(self, message: dict[str, bytes] | None) -> None:
        if message is None:
            return
        request_id = message["data"].decode(errors="replace")
        with self._lock:
            subscriptions = list(self._subscriptions.get(request_id, ()))
        for subscription in subscriptions:
            subscription.hear(request_id)


def _decoded(entry: tuple[bytes, dict[bytes, bytes]]) -> StreamedEvent:
    """Raises `UndecodableMessage`."""
    entry_id, fields = entry
    with wire.reading("event", fields):
        event = event_adapter.validate_python(msgpack.unpackb(fields[b"event"]))
    return StreamedEvent(entry_id.decode(), event)
