"""One client's socket, with buffers for received and unsent bytes. Knows nothing of gunicorn."""

import errno
import os
import select
import socket
import threading
from contextlib import suppress
from typing import Any, Self

#: Seconds that a thread waits for a client that neither sends nor receives, before it gives the connection up.
PATIENCE_S = 30.0
#: Bytes of an answer that are buffered for a slow client, so that no thread waits for it.
MAX_UNSENT_BYTES = 2 * 1024 * 1024
#: The same for all clients of a process together. Beyond it, a slow client is cut off.
MAX_ALL_UNSENT_BYTES = 128 * 1024 * 1024
#: `poll` events of a connection whose client is gone. POLLRDHUP, "it sends no more", is Linux's alone.
GONE = select.POLLHUP | select.POLLERR | getattr(select, "POLLRDHUP", 0)


class Unsent:
    """Counts the unsent bytes of all clients together."""

    def __init__(self) -> None:
        self._num_bytes = 0
        self._lock = threading.Lock()

    def add(self, num_bytes: int) -> bool:
        """Add to the count, or subtract; False, and no change, where it would exceed `MAX_ALL_UNSENT_BYTES`."""
        with self._lock:
            if num_bytes > 0 and self._num_bytes + num_bytes > MAX_ALL_UNSENT_BYTES:
                return False
            self._num_bytes += num_bytes
            return True


class ClientSocket(socket.socket):
    """Reads from `received` first. Blocking calls end after `PATIENCE_S`, as if the client had left.

    While `is_buffering`, `sendall` puts what cannot be sent at once into `unsent`, for `send_more`.
    """

    def __init__(self, accepted: socket.socket, all_unsent: Unsent) -> None:
        super().__init__(accepted.family, accepted.type, accepted.proto, accepted.detach())
        self.received = bytearray()
        self.unsent = bytearray()
        self.is_buffering = False
        self._all_unsent = all_unsent

    def setblocking(self, blocking: bool, /) -> None:
        """As a socket's, but a blocking call waits for `PATIENCE_S` at most."""
        self.settimeout(PATIENCE_S if blocking else 0.0)

    def fill(self, num_bytes: int) -> int | None:
        """Receive up to `num_bytes` into `received`, and return how many; None where nothing has arrived.

        0 at the end of the stream and after an error. For a non-blocking socket.
        """
        try:
            data = super().recv(num_bytes)
        except BlockingIOError:
            return None
        except OSError:
            return 0
        self.received += data
        return len(data)

    def recv(self, num_bytes: int, flags: int = 0, /) -> bytes:
        """Receive. Raises `TimeoutError` after `PATIENCE_S` without a byte."""
        if self.received and not flags:
            data = bytes(self.received[:num_bytes])
            del self.received[:num_bytes]
            return data
        return super().recv(num_bytes, flags)

    def sendall(self, data: Any, flags: int = 0, /) -> None:
        """Send, or buffer. Raises `BrokenPipeError` where the client receives nothing for `PATIENCE_S`."""
        if self.is_buffering and len(self.unsent) + len(data) <= MAX_UNSENT_BYTES:
            self._buffer(data)
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
        """Send as much of `unsent` as goes without waiting; whether that was all. Raises OSError."""
        with suppress(BlockingIOError):
            self._forget_unsent(super().send(self.unsent) if self.unsent else 0)
        return not self.unsent

    def has_left(self) -> bool:
        """Whether the client has closed, or shut down its sending side. Received bytes stay where they are."""
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

    def _buffer(self, data: Any) -> None:
        sent = 0
        if not self.unsent:
            # A socket with a time-out does not block; Python's `send` would wait until it can be written to.
            with suppress(BlockingIOError):
                sent = os.write(self.fileno(), data)
        left = memoryview(data)[sent:]
        if left and not self._all_unsent.add(len(left)):
            raise BrokenPipeError(errno.EPIPE, "too many unsent bytes of slow clients")
        self.unsent += left

    def _forget_unsent(self, num_bytes: int) -> None:
        del self.unsent[:num_bytes]
        self._all_unsent.add(-num_bytes)
