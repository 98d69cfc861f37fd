"""Places for what holds a thread for long: fewer than threads, so that health and submissions always find one."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import BoundedSemaphore

from flask import Response


class TooManyStreams(Exception):
    """Every place is taken. The client may try again soon, at this process or another."""


class Slot:
    """A taken place."""

    def __init__(self, free: BoundedSemaphore) -> None:
        self._free = free
        self.handed_on = False

    def held_by(self, response: Response) -> Response:
        """Leave the place to the response, which gives it back when it has been sent or its client has left."""
        self.handed_on = True
        response.call_on_close(self._free.release)
        return response


class StreamLimits:
    """Counts what blocks a thread for long. `what` it is, its refusal says."""

    def __init__(self, limit: int, what: str = "streams and waits") -> None:
        self._limit = limit
        self._what = what
        self._free = BoundedSemaphore(limit)

    @contextmanager
    def taken(self) -> Iterator[Slot]:
        """A place while the block runs, or longer (`Slot.held_by`). Raises `TooManyStreams` at once."""
        if not self._free.acquire(blocking=False):
            raise TooManyStreams(f"This process already serves {self._limit} {self._what}.")
        slot = Slot(self._free)
        try:
            yield slot
        finally:
            if not slot.handed_on:
                self._free.release()
