"""A TCP proxy before a Redis server: it can be cut off, and it counts round trips."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

#: Bytes that are forwarded at a time.
CHUNK_BYTES = 1 << 16
#: Redis's port where a URL names none.
REDIS_PORT = 6379


class RedisProxy:
    """Listens on a port of this machine and forwards to the server of `redis_url`. Made by `redis_proxy`.

    A round trip is whatever a client sends on one connection until the server answers on it: a command, a pipeline or
    a transaction. What the server pushes by itself (pub/sub) is none.
    """

    def __init__(self, redis_url: str) -> None:
        parts = urlsplit(redis_url)
        if parts.scheme not in {"unix", "redis"}:
            raise ValueError(f"{parts.scheme} is no scheme that this proxy can forward to: use unix or redis")
        self._target: str | tuple[str, int] = (
            parts.path if parts.scheme == "unix" else (parts.hostname or "127.0.0.1", parts.port or REDIS_PORT)
        )
        login = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
        self._listener = socket.create_server(("127.0.0.1", 0))
        path = "" if parts.scheme == "unix" else parts.path
        query = f"?{parts.query}" if parts.query else ""
        self.url = f"redis://{login}127.0.0.1:{self._listener.getsockname()[1]}{path}{query}"
        #: Round trips of all connections since the start. Read it from any thread.
        self.num_round_trips = 0
        self._is_cut = False
        self._sockets: set[socket.socket] = set()
        #: Client sockets whose last bytes have not been answered.
        self._unanswered: set[socket.socket] = set()
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """End all connections and refuse new ones."""
        self._is_cut = True
        for connected in list(self._sockets):
            with suppress(OSError):
                connected.shutdown(socket.SHUT_RDWR)

    def restore(self) -> None:
        """Take connections again."""
        self._is_cut = False

    def close(self) -> None:
        """Cut it for good."""
        self.cut()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = None if self._is_cut else self._connect()
            if server is None:
                client.close()
                continue
            self._sockets |= {client, server}
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._forward, args=(source, sink, client), daemon=True).start()

    def _connect(self) -> socket.socket | None:
        try:
            if isinstance(self._target, tuple):
                server = socket.create_connection(self._target)
                server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return server
            server = socket.socket(socket.AF_UNIX)
            server.connect(self._target)
        except OSError:
            return None
        return server

    def _forward(self, source: socket.socket, sink: socket.socket, client: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(CHUNK_BYTES):
                self._count(client, sent=source is client)
                sink.sendall(data)
        self._sockets.discard(source)
        for connected in (source, sink):
            with suppress(OSError):
                connected.shutdown(socket.SHUT_RDWR)  # which also ends the other direction
        source.close()

    def _count(self, client: socket.socket, *, sent: bool) -> None:
        """Called before the bytes are forwarded, so that an answer cannot come before what it answers is counted."""
        with self._lock:
            if not sent:
                self._unanswered.discard(client)
            elif client not in self._unanswered:
                self._unanswered.add(client)
                self.num_round_trips += 1


@contextmanager
def redis_proxy(redis_url: str) -> Iterator[RedisProxy]:
    """A proxy while the block runs."""
    proxy = RedisProxy(redis_url)
    try:
        yield proxy
    finally:
        proxy.close()
