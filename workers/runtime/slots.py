"""The places for requests in one worker: how many it works on at once, and who must have the engine alone.

A prompt that kills its worker takes everything in flight there with it. Whatever was in flight is tried again alone: on
the last attempt throughout, so that only the request whose fault it is can fail for it; before that until the engine
has written its first text (for a few seconds at most), so that a worker is not blocked by each of many bystanders for a
whole answer.
"""

import threading


class Slots:
    """`capacity` places, for attempts at requests by their work ids. All methods may be called from any thread."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._changed = threading.Condition()
        self._taken: set[str] = set()
        #: The attempt that has the engine alone.
        self._alone: str | None = None

    @property
    def num_taken(self) -> int:
        """Requests that have a place."""
        return len(self._taken)

    def wait_for_room(self, timeout_s: float, *, empty: bool = False) -> int:
        """Block until there is room, or until nobody has a place (`empty`). Returns the room; 0 after the timeout."""
        with self._changed:
            self._changed.wait_for(lambda: self._room(empty=empty) > 0, timeout_s)
            return self._room(empty=empty)

    def take(self, work_id: str, *, alone: bool = False) -> None:
        """Give the request a place; `alone`: nobody else gets one until it is shared or given back."""
        with self._changed:
            self._taken.add(work_id)
            if alone:
                self._alone = work_id

    def share(self, work_id: str) -> None:
        """Let others in beside a request that was alone. Idempotent."""
        with self._changed:
            if self._alone == work_id:
                self._alone = None
                self._changed.notify_all()

    def give_back(self, work_id: str) -> bool:
        """The request has ended. Returns whether nobody has a place now."""
        with self._changed:
            self._taken.discard(work_id)
            if self._alone == work_id:
                self._alone = None
            self._changed.notify_all()
            return not self._taken

    def _room(self, *, empty: bool) -> int:
        if self._alone is not None or (empty and self._taken):
            return 0
        return self._capacity - len(self._taken)
