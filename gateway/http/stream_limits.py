"""Limits on what keeps a thread for long: fewer than there are threads, so that health and submissions find one."""

from contextlib import ExitStack
from threading import BoundedSemaphore

from flask import Response


class TooManyStreams(Exception):
    """The limit is reached. The client may try again soon, at this process or another."""


class StreamPermit(ExitStack):
    """Permission to keep one thread, until the end of the `with` block or until it is closed."""

    def release_after(self, response: Response) -> Response:
        """Release it when the response has been sent or its client has left, and not at the end of the block."""
        response.call_on_close(self.pop_all().close)
        return response


class StreamLimits:
    """Counts what keeps threads in this process. `what` it is, the error says."""

    def __init__(self, limit: int, what: str = "streams and waits") -> None:
        self._limit = limit
        self._what = what
        self._semaphore = BoundedSemaphore(limit)

    def permit(self) -> StreamPermit:
        """A permit, for a `with` statement. Does not block: raises `TooManyStreams`."""
        if not self._semaphore.acquire(blocking=False):
            raise TooManyStreams(f"This process already serves {self._limit} {self._what}.")
        permit = StreamPermit()
        permit.callback(self._semaphore.release)
        return permit
