"""Limits on what keeps a thread for long: fewer than there are threads, so that health and submissions find one."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import BoundedSemaphore

from flask import Response


class TooManyStreams(Exception):
    """The limit is reached. The client may try again soon, at this process or another."""


class StreamPermit:
    """Permission to keep one thread."""

    def __init__(self, semaphore: BoundedSemaphore) -> None:
        self._semaphore = semaphore
        self.is_responses = False

    def release_after(self, response: Response) -> Response:
        """Release the permit when the response has been sent or its client has left, not at the end of the block."""
        self.is_responses = True
        response.call_on_close(self._semaphore.release)
        return response


class StreamLimits:
    """Counts what keeps threads in this process. `what` it is, the error says."""

    def __init__(self, limit: int, what: str = "streams and waits") -> None:
        self._limit = limit
        self._what = what
        self._semaphore = BoundedSemaphore(limit)

    @contextmanager
    def permit(self) -> Iterator[StreamPermit]:
        """A permit for the block, or for longer (`StreamPermit.release_after`). Raises `TooManyStreams` at once."""
        if not self._semaphore.acquire(blocking=False):
            raise TooManyStreams(f"This process already serves {self._limit} {self._what}.")
        permit = StreamPermit(self._semaphore)
        try:
            yield permit
        finally:
            if not permit.is_responses:
                self._semaphore.release()
