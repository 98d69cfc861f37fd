"""A worker's slots: how many requests it works on at once, and whether one must run alone.

A prompt that crashes its worker ends the attempts of all requests in flight there. Each of them is then retried alone.
In the last attempt it stays alone until its end, so that only the request that causes the crashes can fail because of
them. In earlier ones it is alone only until the first text (or for a few seconds), since otherwise each of many
innocent requests would block a worker for a whole answer.
"""

import threading


class Slots:
    """`capacity` slots for attempts, by their work ids. All methods may be called from any thread."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._changed = threading.Condition()
        self._taken: set[str] = set()
        #: The attempt that runs alone, or None.
        self._alone: str | None = None

    @property
    def num_taken(self) -> int:
        """The number of slots in use."""
        return len(self._taken)

    def wait_for_room(self, timeout_s: float, *, empty: bool = False) -> int:
        """Block until a slot is free, or all are (`empty`). Returns the number of free slots; 0 after the timeout."""
        with self._changed:
            self._changed.wait_for(lambda: self._room(empty=empty) > 0, timeout_s)
            return self._room(empty=empty)

    def take(self, work_id: str, *, alone: bool = False) -> None:
        """Take a slot; `alone`: there is no room for others until `share` or `give_back`."""
        with self._changed:
            self._taken.add(work_id)
            if alone:
                self._alone = work_id

    def share(self, work_id: str) -> None:
        """Let others run beside an attempt that was alone. Idempotent."""
        with self._changed:
            if self._alone == work_id:
                self._alone = None
                self._changed.notify_all()

    def give_back(self, work_id: str) -> None:
        """Free the slot. Idempotent."""
        with self._changed:
            self._taken.discard(work_id)
            if self._alone == work_id:
                self._alone = None
            self._changed.notify_all()

    def _room(self, *, empty: bool) -> int:
        if self._alone is not None or (empty and self._taken):
            return 0
        return self._capacity - len(self._taken)
