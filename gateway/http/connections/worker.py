"""gunicorn's thread worker, with one event loop for all that waits for clients and threads for all else.

gunicorn's own worker gives a connection a thread at its first byte, and the thread waits for the rest; so a few hundred
slow or silent clients block everybody. Here a thread gets a request when all of it has arrived, and is free when the
answer is made: the loop reads requests, keeps idle connections, sends buffered bytes and closes connections.

It replaces semi-private parts of gunicorn 27 (`accept`, `finish_request`, `murder_pending`, `_keepalive_after`,
`_cap_keepalive`): gunicorn is pinned below 28.
"""

import errno
import selectors
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from gunicorn.workers.gthread import TConn, ThreadWorker

from gateway.http.connections.client_socket import ClientSocket, Unsent
from gateway.http.connections.framing import Arrived, Framing

#: Seconds that a client may take to receive the buffered rest of an answer.
TAKE_S = 60.0
#: Seconds that a connection which we end waits for the client to close, so that the answer's last bytes arrive.
LINGER_S = 2.0
#: Seconds that a stopping process waits for requests that are arriving.
LAST_REQUEST_S = 0.5
#: Seconds in which an unread rest of a body must be skipped; it has arrived already.
DRAIN_S = 0.5
#: Seconds between checks for connections that have waited too long.
CHECK_S = 0.25
#: Bytes read at a time.
CHUNK = 1 << 16
#: Bytes of incomplete requests of all clients together. Beyond it, the client that has been sending for the longest is
#: cut off.
MAX_ALL_RECEIVED_BYTES = 256 * 1024 * 1024
#: Errors of a process that may not open more files.
NO_MORE_FILES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
#: Answers given without the application.
ON_DEMAND = b"HTTP/1.1 100 Continue\r\n\r\n"
NOT_IN_TIME = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
HEAD_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
BODY_TOO_LARGE = b"HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


@dataclass(frozen=True)
class Reading:
    """How requests are read."""

    #: Larger bodies are not kept in memory; their views read them.
    max_body_bytes: int
    #: Seconds from a request's first byte until all of it must have arrived.
    request_s: float


class Connection(TConn):
    """One client's connection, in a thread or waiting in the loop until `deadline` (`time.monotonic`)."""

    sock: ClientSocket

    def __init__(self, cfg: Any, sock: ClientSocket, client: Any, server: Any, max_body_bytes: int) -> None:
        super().__init__(cfg, sock, client, server)
        self.data_ready = True  # gunicorn's: a thread need not wait for data
        self.deadline = 0.0
        #: Whether it waits for a request or its rest.
        self.is_reading = False
        self.is_over = False
        #: Whether a thread has its request before all of the body has arrived.
        self.is_large = False
        self.num_counted = 0
        self._max_body_bytes = max_body_bytes
        self.begin_request()

    def begin_request(self) -> None:
        """The next byte is the first of a request."""
        self.framing = Framing(self._max_body_bytes)


class Worker(ThreadWorker):
    """See the module. Its application, `gateway.__main__.Server`, has `reading`."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._reading: Reading = self.app.reading  # type: ignore[attr-defined]
        #: Connections that wait in the loop, in the order in which they began to.
        self._waiting: dict[Connection, None] = {}
        self._all_unsent = Unsent()
        self._num_received = 0
        self._check_again_at = 0.0

    def load_wsgi(self) -> None:
        """Called by gunicorn once in each process."""
        super().load_wsgi()
        self.wsgi = buffering(self.wsgi)

    def accept(self, listener: socket.socket) -> None:
        """Accept a connection. If there are too many, close the one that has waited for the longest."""
        try:
            accepted, address = listener.accept()
        except OSError as error:
            if error.errno in NO_MORE_FILES:
                self.log.warning("connections_used_up connections=%d error=%s", self.nr_conns, error)
                self._evict()
            elif error.errno not in {errno.EAGAIN, errno.EWOULDBLOCK, errno.ECONNABORTED}:
                raise
            return
        self.nr_conns += 1
        connection = Connection(
            self.cfg,
            ClientSocket(accepted, self._all_unsent),
            address,
            listener.getsockname(),
            self._reading.max_body_bytes,
        )
        if self.nr_conns >= self.worker_connections:
            self._evict()
        with self._closing_on_error(connection):
            if not self._read(connection):  # most requests have arrived already
                self._await_request(connection)

    def finish_request(self, conn: Any, fs: Future[Any]) -> None:
        """Called when a thread is done with the connection."""
        goes_on = not fs.cancelled() and fs.exception() is None and bool(fs.result())
        with self._closing_on_error(conn):
            if conn.sock.fileno() < 0:
                self._close(conn)
            elif conn.sock.unsent:
                conn.sock.setblocking(False)
                self._wait(conn, selectors.EVENT_WRITE, partial(self._on_writable, conn, goes_on), TAKE_S)
            else:
                self._after_answer(conn, goes_on)

    def handle_request(self, req: Any, conn: Any) -> bool:
        """Called in a thread. A connection ends after a large body, since the view may not have read it."""
        if conn.is_large:
            req.force_close()
        return bool(super().handle_request(req, conn))

    def murder_pending(self) -> None:
        """End connections that have waited too long. Called after each event, and at least once a second."""
        now = time.monotonic()
        if now < self._check_again_at:
            return
        self._check_again_at = now + CHECK_S
        for connection in [waiting for waiting in self._waiting if waiting.deadline <= now]:
            if connection.is_reading and connection.sock.received:
                with self._closing_on_error(connection):
                    self._refuse(connection, NOT_IN_TIME)
            else:
                self._close(connection)

    def _cap_keepalive(self, deadline: float) -> None:
        """The process stops: requests that do not arrive soon are not answered."""
        deadline = min(deadline, time.monotonic() + LAST_REQUEST_S)
        for connection in self._waiting:
            connection.deadline = min(connection.deadline, deadline)

    def _keepalive_after(self, conn: Any, keepalive: Any) -> bool:
        """Whether the connection can be kept. The rest of a body that the view did not read is skipped."""
        if not keepalive:
            return False
        deadline = time.monotonic() + DRAIN_S
        return bool(conn.parser.finish_body(deadline=deadline, max_bytes=sys.maxsize))

    def _after_answer(self, connection: Connection, goes_on: bool) -> None:
        connection.sock.is_buffering = False
        if not goes_on or not self.alive:
            self._close_gently(connection)
            return
        # The parser may have read the beginning of the next request.
        connection.sock.received[:0] = connection.parser.unreader.take_buffered()  # type: ignore[union-attr]
        connection.begin_request()
        if not connection.sock.received or not self._dispatch(connection):
            self._await_request(connection)

    def _await_request(self, connection: Connection) -> None:
        sock = connection.sock
        sock.setblocking(False)
        connection.is_reading = True
        for_s = self._reading.request_s if sock.received else self.cfg.keepalive
        self._wait(connection, selectors.EVENT_READ, lambda _sock: self._read(connection), for_s)

    def _read(self, connection: Connection) -> bool:
        """Receive; whether the connection waits no longer."""
        sock = connection.sock
        num_new = sock.fill(CHUNK)
        if num_new is None:
            return False
        if not num_new:
            self._close(connection)
            return True
        if len(sock.received) == num_new:
            connection.deadline = time.monotonic() + self._reading.request_s
        return self._dispatch(connection)

    def _dispatch(self, connection: Connection) -> bool:
        """Give a thread the request if it is whole; whether the connection waits no longer."""
        sock = connection.sock
        arrived = connection.framing.look(sock.received)
        if arrived is Arrived.PART_ON_DEMAND:
            sock.send(ON_DEMAND)
        if arrived in {Arrived.PART, Arrived.PART_ON_DEMAND}:
            self._count(connection, len(sock.received))
            if self._num_received > MAX_ALL_RECEIVED_BYTES:
                self._evict(least_bytes=1)
            return connection.is_over
        if arrived in {Arrived.HEAD_TOO_LARGE, Arrived.BODY_TOO_LARGE}:
            self._refuse(connection, HEAD_TOO_LARGE if arrived is Arrived.HEAD_TOO_LARGE else BODY_TOO_LARGE)
            return True
        self._unregister(connection)
        connection.is_reading = False
        connection.is_large = arrived is Arrived.LARGE
        self.enqueue_req(connection)
        return True

    def _on_writable(self, connection: Connection, goes_on: bool, sock: ClientSocket) -> None:
        if sock.send_more():
            self._unregister(connection)
            self._after_answer(connection, goes_on)

    def _refuse(self, connection: Connection, answer: bytes) -> None:
        connection.sock.send(answer)
        self._close_gently(connection)

    def _close_gently(self, connection: Connection) -> None:
        """Close after the client has, or after a while: otherwise bytes that are under way would be lost."""
        connection.sock.setblocking(False)
        connection.sock.shutdown(socket.SHUT_WR)
        connection.is_reading = False
        if not self._has_client_closed(connection):
            self._wait(connection, selectors.EVENT_READ, lambda _sock: self._has_client_closed(connection), LINGER_S)

    def _has_client_closed(self, connection: Connection) -> bool:
        """Skip what still arrives. If the client has closed the connection, close it too; whether that is so."""
        num_new = connection.sock.fill(CHUNK)
        connection.sock.received.clear()
        if num_new == 0:
            self._close(connection)
        return num_new == 0

    def _wait(self, connection: Connection, event: int, then: Callable[[ClientSocket], object], for_s: float) -> None:
        self._unregister(connection)
        connection.deadline = time.monotonic() + for_s
        self._waiting[connection] = None
        self.poller.register(connection.sock, event, partial(self._on_event, connection, then))

    def _on_event(self, connection: Connection, then: Callable[[ClientSocket], object], sock: ClientSocket) -> None:
        """Called by gunicorn's loop, perhaps just after the connection was evicted."""
        if not connection.is_over:
            with self._closing_on_error(connection):
                then(sock)

    @contextmanager
    def _closing_on_error(self, connection: Connection) -> Iterator[None]:
        """An error ends this connection and not the loop. `OSError` is a client that has left."""
        try:
            yield
        except OSError as error:
            self.log.debug("connection_ended error=%s", error)
            self._close(connection)
        except Exception:
            self.log.exception("connection_broke")
            self._close(connection)

    def _unregister(self, connection: Connection) -> None:
        self._count(connection, 0)
        if connection in self._waiting:
            del self._waiting[connection]
            self.poller.unregister(connection.sock)

    def _count(self, connection: Connection, num_bytes: int) -> None:
        self._num_received += num_bytes - connection.num_counted
        connection.num_counted = num_bytes

    def _close(self, connection: Connection) -> None:
        if connection.is_over:
            return
        connection.is_over = True
        self._unregister(connection)
        self.nr_conns -= 1
        connection.close()

    def _evict(self, least_bytes: int = 0) -> None:
        """Close the connection that has waited for the longest, of those with `least_bytes` of a request."""
        longest = next((waiting for waiting in self._waiting if waiting.num_counted >= least_bytes), None)
        if longest is not None:
            self._close(longest)


def buffering(application: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
    """The WSGI application; answers of known length are buffered, so that no thread waits for a slow client."""

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        def start(status: str, headers: list[tuple[str, str]], *exc_info: Any) -> Any:
            sock = environ.get("gunicorn.socket")
            if isinstance(sock, ClientSocket):
                sock.is_buffering = any(name.lower() == "content-length" for name, _value in headers)
            return start_response(status, headers, *exc_info)

        return application(environ, start)

    return answer
