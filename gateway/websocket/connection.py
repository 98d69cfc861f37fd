"""One WebSocket over the socket that gunicorn gives its applications. The frames are the `websockets` package's."""

import socket
import threading
import time
from collections import deque
from collections.abc import Mapping

from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import State
from websockets.server import ServerProtocol

#: Bytes read at a time.
CHUNK = 1 << 16
#: Seconds between pings, and seconds without any word after which the other side is taken for gone.
PING_S, SILENCE_S = 20.0, 60.0


class Gone(Exception):
    """The other side has left, or does not keep the protocol."""


class Connection:
    """Text messages both ways. One thread may receive while any others send."""

    def __init__(self, raw: socket.socket, max_size: int) -> None:
        self._socket = raw
        self._protocol = ServerProtocol(max_size=max_size)
        self._messages: deque[str] = deque()
        self._pieces: list[bytes] = []
        self._lock = threading.Lock()
        self._heard_at = self._pinged_at = time.monotonic()

    def open(self, path: str, headers: Mapping[str, str]) -> None:
        """Answer the handshake. Raises `Gone` where it is none."""
        lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        self._protocol.receive_data("\r\n".join(lines).encode("latin-1"))
        request = next(iter(self._protocol.events_received()), None)
        if not isinstance(request, Request):
            raise Gone("no handshake")
        try:
            self._protocol.send_response(self._protocol.accept(request))
        except InvalidHandshake as error:
            raise Gone(str(error)) from error
        self._flush()
        if self._protocol.state is not State.OPEN:
            raise Gone("the handshake was refused")
        self._socket.settimeout(PING_S)

    def receive(self) -> str:
        """The next message. Blocks, and pings meanwhile; raises `Gone`."""
        while not self._messages:
            try:
                data = self._socket.recv(CHUNK)
            except TimeoutError:
                self._ping()
                continue
            except OSError as error:
                raise Gone(str(error)) from error
            self._heard_at = time.monotonic()
            with self._lock:
                if data:
                    self._protocol.receive_data(data)
                else:
                    self._protocol.receive_eof()
                for event in self._protocol.events_received():
                    self._take(event)
                self._flush()
                if self._protocol.state is not State.OPEN and not self._messages:
                    raise Gone("closed")
        return self._messages.popleft()

    def send(self, text: str) -> None:
        """Send a message. Raises `Gone`."""
        with self._lock:
            try:
                self._protocol.send_text(text.encode())
            except ConnectionClosed as error:
                raise Gone(str(error)) from error
            self._flush()

    def close(self) -> None:
        """Say good-bye and end a `receive` in another thread. Idempotent."""
        with self._lock:
            if self._protocol.state is State.OPEN:
                self._protocol.send_close(CloseCode.NORMAL_CLOSURE)
            try:
                self._flush()
                self._socket.shutdown(socket.SHUT_RDWR)
            except (Gone, OSError):
                pass  # it had left already

    def _take(self, event: object) -> None:
        """One frame. Binary ones and texts in pieces are read alike: the JSON in them counts."""
        if not isinstance(event, Frame) or event.opcode not in {Opcode.TEXT, Opcode.BINARY, Opcode.CONT}:
            return
        self._pieces.append(bytes(event.data))
        if event.fin:
            self._messages.append(b"".join(self._pieces).decode(errors="replace"))
            self._pieces = []

    def _ping(self) -> None:
        if time.monotonic() - self._heard_at > SILENCE_S:
            raise Gone("silent for too long")
        with self._lock:
            if self._protocol.state is State.OPEN:
                self._protocol.send_ping(b"")
                self._flush()

    def _flush(self) -> None:
        try:
            for data in self._protocol.data_to_send():
                if data:
                    self._socket.sendall(data)
        except OSError as error:
            raise Gone(str(error)) from error
