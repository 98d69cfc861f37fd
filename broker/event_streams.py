"""Reads event streams. Each process has one subscriber to Redis, which wakes the readers in that process.

A notification is a hint. Readers read the stream itself, from where they stopped, so that a missed notification costs
no more than `POLL_S`. Any process can serve any reader at any position.
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

#: Seconds after which a reader reads the stream without a notification, in case it missed one.
POLL_S = 2.0
#: The position before a stream's first event.
BEGINNING = "0-0"


@dataclass(frozen=True)
class StreamedEvent:
    """An event and its position, from which an interrupted reader can go on."""

    position: str
    event: Event


class EventSubscription:
    """One reader's subscription to the events of some requests. Made by `EventHub.subscribe`."""

    def __init__(self, hub: "EventHub") -> None:
        self._hub = hub
        self._request_ids: set[str] = set()
        self._notified: set[str] = set()
        self._changed = threading.Condition()

    def add(self, request_id: str) -> None:
        """Subscribe to the request as well. Idempotent."""
        self._request_ids.add(request_id)
        self._hub.register(request_id, self)

    def discard(self, request_id: str) -> None:
        """Unsubscribe from the request. Idempotent."""
        self._request_ids.discard(request_id)
        self._hub.unregister(request_id, self)

    def close(self) -> None:
        """Unsubscribe from all requests. Idempotent."""
        for request_id in list(self._request_ids):
            self.discard(request_id)

    def notify(self, request_id: str) -> None:
        """The request got an event. Called by the hub, or by a reader that wants `wait` to return."""
        with self._changed:
            self._notified.add(request_id)
            self._changed.notify()

    def wait(self, timeout_s: float) -> set[str]:
        """Block until a request has new events; returns all that got any since the last call, none after a timeout."""
        with self._changed:
            self._changed.wait_for(lambda: self._notified, timeout_s)
            notified, self._notified = self._notified, set()
        return notified


class EventHub:
    """Wakes this process's readers when their requests get events. Each process starts one."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._subscriptions: dict[str, set[EventSubscription]] = defaultdict(set)
        self._lock = threading.Lock()
        #: Receives Redis's notifications. While it does not run, readers poll.
        self.loop = Loop("event-hub", self._listen, every_s=0.0)

    def read(self, request_id: str, after: str = BEGINNING) -> list[StreamedEvent]:
        """The events after the position. Does not wait. Raises `UndecodableMessage`."""
        entries = cast(
            "list[tuple[bytes, dict[bytes, bytes]]]",
            self._redis.xrange(keys.events(request_id), min=f"({after}"),
        )
        return [_decoded(entry) for entry in entries]

    def endings(self, request_ids: Iterable[str]) -> dict[str, Event | None]:
        """The final events of the requests that have ended; None for one whose stream is gone. One round trip.

        Unfinished requests are left out.
        """
        request_ids = list(request_ids)
        with self._redis.pipeline(transaction=False) as pipeline:
            for request_id in request_ids:
                pipeline.xrevrange(keys.events(request_id), count=1)
            answers = pipeline.execute()
        ended: dict[str, Event | None] = {}
        for request_id, entries in zip(request_ids, answers, strict=True):
            event = _decoded(entries[0]).event if entries else None
            if event is None or event.type in FINAL_KINDS:
                ended[request_id] = event
        return ended

    def wait_for_end(self, request_id: str, deadline: float, given_up: Callable[[], bool] = lambda: False) -> None:
        """Block until the request has its final event, its stream is gone, or the deadline (`time.monotonic`) passes.

        Returns early if `given_up`, which is called after every `POLL_S` seconds without an event, returns True.
        """
        with self.subscribe([request_id]) as subscription:
            while not self.endings([request_id]) and (remaining := deadline - time.monotonic()) > 0:
                if not subscription.wait(min(remaining, POLL_S)) and given_up():
                    return

    def follow(self, request_id: str, after: str, deadline: float) -> Iterator[StreamedEvent | None]:
        """One request's events after the position: see `follow_all`."""
        for event_of_request in self.follow_all({request_id: after}, deadline):
            yield None if event_of_request is None else event_of_request[1]

    def follow_all(self, after: Mapping[str, str], deadline: float) -> Iterator[tuple[str, StreamedEvent] | None]:
        """Yields request ids and events of several requests, each from after its position on, as they happen.

        Ends when every request has had its final event or its stream has expired, or at the deadline
        (`time.monotonic`). Yields None after every `POLL_S` seconds without an event, so that the caller can send a
        heartbeat. Blocks between events.
        """
        unfinished = dict(after)
        with self.subscribe(unfinished) as subscription:
            notified = set(unfinished)
            while unfinished:
                for request_id in sorted(notified & unfinished.keys()):
                    for streamed in self.read(request_id, unfinished[request_id]):
                        yield request_id, streamed
                        unfinished[request_id] = streamed.position
                        if streamed.event.type in FINAL_KINDS:
                            del unfinished[request_id]
                remaining = deadline - time.monotonic()
                if not unfinished or remaining <= 0:
                    return
                notified = subscription.wait(min(remaining, POLL_S))
                if not notified:
                    for request_id in [name for name in unfinished if not self._redis.exists(keys.events(name))]:
                        del unfinished[request_id]
                    notified = set(unfinished)
                    if unfinished:
                        yield None

    @contextmanager
    def subscribe(self, request_ids: Iterable[str] = ()) -> Iterator[EventSubscription]:
        """A subscription for the duration of the block. It is notified of events after a request was added to it."""
        subscription = EventSubscription(self)
        for request_id in request_ids:
            subscription.add(request_id)
        try:
            yield subscription
        finally:
            subscription.close()

    def register(self, request_id: str, subscription: EventSubscription) -> None:
        """Notify the subscription of the request's events from now on."""
        with self._lock:
            self._subscriptions[request_id].add(subscription)

    def unregister(self, request_id: str, subscription: EventSubscription) -> None:
        """Stop notifying the subscription of the request's events. Idempotent."""
        with self._lock:
            subscriptions = self._subscriptions.get(request_id, set())
            subscriptions.discard(subscription)
            if not subscriptions:
                self._subscriptions.pop(request_id, None)

    def _listen(self) -> None:
        with self._redis.pubsub(ignore_subscribe_messages=True) as pubsub:  # type: ignore[no-untyped-call]
            pubsub.subscribe(keys.notifications())
            while not self.loop.closing.is_set():
                self._wake(pubsub.get_message(timeout=POLL_S / 2))

    def _wake(self, message: dict[str, bytes] | None) -> None:
        if message is None:
            return
        request_id = message["data"].decode(errors="replace")
        with self._lock:
            subscriptions = list(self._subscriptions.get(request_id, ()))
        for subscription in subscriptions:
            subscription.notify(request_id)


def _decoded(entry: tuple[bytes, dict[bytes, bytes]]) -> StreamedEvent:
    """Raises `UndecodableMessage`."""
    entry_id, fields = entry
    with wire.reading("event", fields):
        event = event_adapter.validate_python(msgpack.unpackb(fields[b"event"]))
    return StreamedEvent(entry_id.decode(), event)
