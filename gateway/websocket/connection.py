"""One WebSocket on the socket that gunicorn gives its applications. The `websockets` package does the frames."""

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
#: Seconds between pings, and seconds of silence after which the client counts as gone.
PING_S, SILENCE_S = 20.0, 60.0


class Gone(Exception):
    """The client has left, or breaks the protocol."""


class Connection:
    """Receives and sends text messages. One thread may receive while any others send."""

    def __init__(self, raw: socket.socket, max_size: int) -> None:
        self._socket = raw
        self._protocol = ServerProtocol(max_size=max_size)
        self._messages: deque[str] = deque()
        self._fragments: list[bytes] = []
        self._lock = threading.Lock()
        self._received_at = self._pinged_at = time.monotonic()

    def open(self, path: str, headers: Mapping[str, str]) -> None:
        """Answer the handshake. Raises `Gone` if the request is not a handshake, or one that fails."""
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
            self._received_at = time.monotonic()
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
        """Close the connection; `receive` in another thread then raises `Gone`. Idempotent."""
        with self._lock:
            if self._protocol.state is State.OPEN:
                self._protocol.send_close(CloseCode.NORMAL_CLOSURE)
            try:
                self._flush()
                self._socket.shutdown(socket.SHUT_RDWR)
            except (Gone, OSError):
                pass  # the client had left already

    def _take(self, event: object) -> None:
        """Take one frame in. Binary and fragmented messages are accepted too: only the JSON in them counts."""
        if not isinstance(event, Frame) or event.opcode not in {Opcode.TEXT, Opcode.BINARY, Opcode.CONT}:
            return
        self._fragments.append(bytes(event.data))
        if event.fin:
            self._messages.append(b"".join(self._fragments).decode(errors="replace"))
            self._fragments = []

    def _ping(self) -> None:
        if time.monotonic() - self._received_at > SILENCE_S:
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
