"""Reading event streams: one subscriber a process, and waiting readers that it wakes.

A notification is a hint: readers read the stream itself, from where they stopped, so one that was missed costs
`POLL_S` and nothing else. Any process can serve any reader at any position.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import msgpack
from redis import Redis
from redis.exceptions import RedisError

from broker import keys
from schemas.events import FINAL_KINDS, Event, event_adapter

#: Seconds after which a reader looks by itself, should a notification have been missed.
POLL_S = 2.0
#: Seconds between tries to subscribe while Redis is away.
RETRY_S = 0.5
#: The position before a stream's first event.
BEGINNING = "0-0"


@dataclass(frozen=True)
class StreamedEvent:
    """An event and its position, at which a reader that was cut off can go on."""

    position: str
    event: Event


class EventHub:
    """Wakes the readers of this process when their request got an event. Start it once a process."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._waiting: dict[str, set[threading.Event]] = defaultdict(set)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="event-hub", daemon=True)

    def start(self) -> None:
        """Subscribe, on a thread of its own."""
        self._thread.start()

    def close(self) -> None:
        """Stop listening. Readers that still wait go on by polling."""
        self._stop.set()
        self._thread.join(timeout=POLL_S)

    def read(self, request_id: str, after: str = BEGINNING) -> list[StreamedEvent]:
        """Events after the position, without waiting."""
        entries = cast(
            "list[tuple[bytes, dict[bytes, bytes]]]",
            self._redis.xrange(keys.events(request_id), min=f"({after}"),
        )
        return [
            StreamedEvent(entry_id.decode(), event_adapter.validate_python(msgpack.unpackb(fields[b"event"])))
            for entry_id, fields in entries
        ]

    def follow(self, request_id: str, after: str, deadline: float) -> Iterator[StreamedEvent | None]:
        """Events after the position as they come, until a final one or the deadline (of `time.monotonic`).

        Ends as well when the stream has expired.

        Yields None at least every `POLL_S` seconds in which nothing happened, so that the caller can send a sign of
        life. Blocks between events.
        """
        bell = threading.Event()
        with self._lock:
            self._waiting[request_id].add(bell)
        try:
            while True:
                bell.clear()
                events = self.read(request_id, after)
                yield from events
                if events:
                    after = events[-1].position
                    if events[-1].event.type in FINAL_KINDS:
                        return
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    return
                if not bell.wait(min(remaining, POLL_S)):
                    if not self._redis.exists(keys.events(request_id)):
                        return
                    yield None
        finally:
            with self._lock:
                self._waiting[request_id].discard(bell)
                if not self._waiting[request_id]:
                    del self._waiting[request_id]

    def _listen(self) -> None:
        while not self._stop.is_set():
            try:
                with self._redis.pubsub(ignore_subscribe_messages=True) as subscription:  # type: ignore[no-untyped-call]
                    subscription.subscribe(keys.notifications())
                    while not self._stop.is_set():
                        self._wake(subscription.get_message(timeout=POLL_S / 2))
            except RedisError:
                self._stop.wait(RETRY_S)

    def _wake(self, message: dict[str, bytes] | None) -> None:
        if message is None:
            return
        with self._lock:
            for bell in self._waiting.get(message["data"].decode(), ()):
                bell.set()
