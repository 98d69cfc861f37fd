"""Places for streams and waits: fewer than threads, so that health and submissions always find a thread."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import BoundedSemaphore


class TooManyStreams(Exception):
    """Every place is taken. The client may try again soon, at this process or another."""


class StreamSlots:
    """Counts what blocks a thread for long."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._free = BoundedSemaphore(limit)

    def take(self) -> None:
        """Take a place until `release`. Raises `TooManyStreams` at once where there is none."""
        if not self._free.acquire(blocking=False):
            raise TooManyStreams(f"This process already serves {self.limit} streams and waits.")

    def release(self) -> None:
        """Give a place back."""
        self._free.release()

    @contextmanager
    def taken(self) -> Iterator[None]:
        """A place while the block runs. Raises `TooManyStreams`."""
        self.take()
        try:
            yield
        finally:
            self.release()
