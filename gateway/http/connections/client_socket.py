"""One client's socket, with what has come on it and what it has not taken yet. Knows nothing of gunicorn."""

import errno
import os
import select
import socket
import threading
from contextlib import suppress
from typing import Any, Self

#: Seconds that a thread waits for a client that sends or takes nothing, before the connection is given up.
PATIENCE_S = 30.0
#: Bytes of an answer that are kept for a client that is slow to take them, so that no thread waits for it.
MAX_UNSENT_BYTES = 2 * 1024 * 1024
#: The same, of all clients of a process together. Whoever is slow beyond that is cut off.
MAX_ALL_UNSENT_BYTES = 128 * 1024 * 1024
#: What `poll` says of a connection whose other end is gone; the half that says "it will send no more" is Linux's.
GONE = select.POLLHUP | select.POLLERR | getattr(select, "POLLRDHUP", 0)


class Unsent:
    """Counts what all clients together have not taken."""

    def __init__(self) -> None:
        self._num_bytes = 0
        self._lock = threading.Lock()

    def add(self, num_bytes: int) -> bool:
        """Count so many more (or fewer); False, and nothing is counted, where that is more than may be kept."""
        with self._lock:
            if num_bytes > 0 and self._num_bytes + num_bytes > MAX_ALL_UNSENT_BYTES:
                return False
            self._num_bytes += num_bytes
            return True


class ClientSocket(socket.socket):
    """Reads from `received` first. Blocking calls end after `PATIENCE_S`, as if the client had left.

    While `postpones`, `sendall` keeps what the client does not take at once, in `unsent`, for `send_more`.
    """

    def __init__(self, accepted: socket.socket, all_unsent: Unsent) -> None:
        super().__init__(accepted.family, accepted.type, accepted.proto, accepted.detach())
        self.received = bytearray()
        self.unsent = bytearray()
        self.postpones = False
        self._all_unsent = all_unsent

    def setblocking(self, blocking: bool, /) -> None:
        """As a socket's, but blocking means for `PATIENCE_S`."""
        self.settimeout(PATIENCE_S if blocking else 0.0)

    def fill(self, num_bytes: int) -> int:
        """Take in what has come, at most so many bytes; 0 at the end. Raises `BlockingIOError` where nothing has.

        For whoever does not wait (`setblocking(False)`).
        """
        data = super().recv(num_bytes)
        self.received += data
        return len(data)

    def recv(self, num_bytes: int, flags: int = 0, /) -> bytes:
        """What has come. Raises `TimeoutError` where nothing does for too long."""
        if self.received and not flags:
            data = bytes(self.received[:num_bytes])
            del self.received[:num_bytes]
            return data
        return super().recv(num_bytes, flags)

    def sendall(self, data: Any, flags: int = 0, /) -> None:
        """Send, or postpone. Raises `BrokenPipeError` where the client takes nothing for too long."""
        if self.postpones and len(self.unsent) + len(data) <= MAX_UNSENT_BYTES:
            self._postpone(data)
            return
        try:
            if self.unsent:
                pending = bytes(self.unsent)
                self._forget_unsent(len(pending))
                super().sendall(pending)
            super().sendall(data, flags)
        except TimeoutError as error:
            raise BrokenPipeError(errno.EPIPE, "the client takes nothing") from error

    def send_more(self) -> bool:
        """Send what can be sent of `unsent` without waiting; whether that was all. Raises OSError."""
        with suppress(BlockingIOError):
            self._forget_unsent(super().send(self.unsent) if self.unsent else 0)
        return not self.unsent

    def has_left(self) -> bool:
        """Whether the other end has closed, or said that it will send no more. Bytes that came are left alone."""
        poll = select.poll()
        poll.register(self.fileno(), select.POLLIN | GONE)
        events = dict(poll.poll(0)).get(self.fileno(), 0)
        if events & GONE:
            return True
        return bool(events & select.POLLIN) and not super().recv(1, socket.MSG_PEEK)

    def close(self) -> None:
        """Idempotent."""
        self._forget_unsent(len(self.unsent))
        super().close()

    def __enter__(self) -> Self:
        return self

    def _postpone(self, data: Any) -> None:
        sent = 0
        if not self.unsent:
            # A socket with a time limit does not block; it is Python's `send` that waits until it can be written to.
            with suppress(BlockingIOError):
                sent = os.write(self.fileno(), data)
        left = memoryview(data)[sent:]
        if left and not self._all_unsent.add(len(left)):
            raise BrokenPipeError(errno.EPIPE, "too much waits for clients that are slow to take it")
        self.unsent += left

    def _forget_unsent(self, num_bytes: int) -> None:
        del self.unsent[:num_bytes]
        self._all_unsent.add(-num_bytes)
