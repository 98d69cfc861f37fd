"""Reading event streams: one subscriber a process, and waiting readers that it wakes.

A notification is a hint: readers read the stream itself, from where they stopped, so one that was missed costs
`POLL_S` and nothing else. Any process can serve any reader at any position.
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

#: Seconds after which a reader looks by itself, should a notification have been missed.
POLL_S = 2.0
#: The position before a stream's first event.
BEGINNING = "0-0"


@dataclass(frozen=True)
class StreamedEvent:
    """An event and its position, at which a reader that was cut off can go on."""

    position: str
    event: Event


class EventSubscription:
    """One reader's ear: which of the requests that it listens for got events. Made by `EventHub.listening`."""

    def __init__(self, hub: "EventHub") -> None:
        self._hub = hub
        self._request_ids: set[str] = set()
        self._heard: set[str] = set()
        self._changed = threading.Condition()

    def add(self, request_id: str) -> None:
        """Listen for the request as well. Idempotent."""
        self._request_ids.add(request_id)
        self._hub.enlist(request_id, self)

    def discard(self, request_id: str) -> None:
        """Listen for it no longer. Idempotent."""
        self._request_ids.discard(request_id)
        self._hub.dismiss(request_id, self)

    def close(self) -> None:
        """Listen for nothing any more. Idempotent."""
        for request_id in list(self._request_ids):
            self.discard(request_id)

    def hear(self, request_id: str) -> None:
        """The request got an event. Called by the hub."""
        with self._changed:
            self._heard.add(request_id)
            self._changed.notify()

    def wait(self, timeout_s: float) -> set[str]:
        """The requests that got events since the last call, as soon as there are any; none after the timeout."""
        with self._changed:
            self._changed.wait_for(lambda: self._heard, timeout_s)
            heard, self._heard = self._heard, set()
        return heard


class EventHub:
    """Wakes the readers of this process when their request got an event. Start it once a process."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._listening: dict[str, set[EventSubscription]] = defaultdict(set)
        self._lock = threading.Lock()
        #: Listens to Redis's notifications, once it is started. Without it, or after its end, readers poll.
        self.loop = Loop("event-hub", self._listen, every_s=0.0)

    def read(self, request_id: str, after: str = BEGINNING) -> list[StreamedEvent]:
        """Events after the position, without waiting. Raises `UndecodableMessage`."""
        entries = cast(
            "list[tuple[bytes, dict[bytes, bytes]]]",
            self._redis.xrange(keys.events(request_id), min=f"({after}"),
        )
        return [_decoded(entry) for entry in entries]

    def endings(self, request_ids: Iterable[str]) -> dict[str, Event | None]:
        """How those of the requests ended that have: their final event, None where the stream is gone. One round trip.

        Those that go on are left out.
        """
        asked = list(request_ids)
        with self._redis.pipeline(transaction=False) as pipeline:
            for request_id in asked:
                pipeline.xrevrange(keys.events(request_id), count=1)
            answers = pipeline.execute()
        ended: dict[str, Event | None] = {}
        for request_id, entries in zip(asked, answers, strict=True):
            event = _decoded(entries[0]).event if entries else None
            if event is None or event.type in FINAL_KINDS:
                ended[request_id] = event
        return ended

    def wait_for_end(self, request_id: str, deadline: float, given_up: Callable[[], bool] = lambda: False) -> None:
        """Block until the request has had its final event, its stream is gone, or the deadline (`time.monotonic`).

        Or until it was `given_up`, which is asked after `POLL_S` seconds in which nothing happened.
        """
        with self.listening([request_id]) as listening:
            while not self.endings([request_id]) and (remaining := deadline - time.monotonic()) > 0:
                if not listening.wait(min(remaining, POLL_S)) and given_up():
                    return

    def follow(self, request_id: str, after: str, deadline: float) -> Iterator[StreamedEvent | None]:
        """One request's events after the position: see `follow_all`."""
        for told in self.follow_all({request_id: after}, deadline):
            yield None if told is None else told[1]

    def follow_all(self, after: Mapping[str, str], deadline: float) -> Iterator[tuple[str, StreamedEvent] | None]:
        """Events of several requests, each after its position, as they come: request id and event.

        Ends when every request had its final event or its stream has expired, or at the deadline (of
        `time.monotonic`). Yields None at least every `POLL_S` seconds in which nothing happened, so that the caller
        can send a sign of life. Blocks between events.
        """
        unfinished = dict(after)
        with self.listening(unfinished) as listening:
            heard = set(unfinished)
            while unfinished:
                for request_id in sorted(heard & unfinished.keys()):
                    for streamed in self.read(request_id, unfinished[request_id]):
                        yield request_id, streamed
                        unfinished[request_id] = streamed.position
                        if streamed.event.type in FINAL_KINDS:
                            del unfinished[request_id]
                remaining = deadline - time.monotonic()
                if not unfinished or remaining <= 0:
                    return
                heard = listening.wait(min(remaining, POLL_S))
                if not heard:
                    for request_id in [one for one in unfinished if not self._redis.exists(keys.events(one))]:
                        del unfinished[request_id]
                    heard = set(unfinished)
                    if unfinished:
                        yield None

    @contextmanager
    def listening(self, request_ids: Iterable[str] = ()) -> Iterator[EventSubscription]:
        """An ear while the block runs. Hears of events after it was told of their request, not of earlier ones."""
        listening = EventSubscription(self)
        for request_id in request_ids:
            listening.add(request_id)
        try:
            yield listening
        finally:
            listening.close()

    def enlist(self, request_id: str, listening: EventSubscription) -> None:
        """Tell it of the request's events from now on."""
        with self._lock:
            self._listening[request_id].add(listening)

    def dismiss(self, request_id: str, listening: EventSubscription) -> None:
        """Do not, any more."""
        with self._lock:
            listeners = self._listening.get(request_id, set())
            listeners.discard(listening)
            if not listeners:
                self._listening.pop(request_id, None)

    def _listen(self) -> None:
        with self._redis.pubsub(ignore_subscribe_messages=True) as subscription:  # type: ignore[no-untyped-call]
            subscription.subscribe(keys.notifications())
            while not self.loop.closing.is_set():
                self._wake(subscription.get_message(timeout=POLL_S / 2))

    def _wake(self, message: dict[str, bytes] | None) -> None:
        if message is None:
            return
        request_id = message["data"].decode(errors="replace")
        with self._lock:
            listeners = list(self._listening.get(request_id, ()))
        for listening in listeners:
            listening.hear(request_id)


def _decoded(entry: tuple[bytes, dict[bytes, bytes]]) -> StreamedEvent:
    """Raises `UndecodableMessage`."""
    entry_id, fields = entry
    with wire.reading("event", fields):
        event = event_adapter.validate_python(msgpack.unpackb(fields[b"event"]))
    return StreamedEvent(entry_id.decode(), event)
