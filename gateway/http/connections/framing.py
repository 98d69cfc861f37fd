"""Finds where a request ends, so that a thread gets it only when all of it has arrived. Pure.

It is not a parser: gunicorn's reads the same bytes afterwards and decides what they mean. A request that cannot be
understood here counts as whole, so that the parser refuses it at once.
"""

import re
from enum import Enum, auto

#: Bytes of a request's head: the request line and all headers.
MAX_HEAD_BYTES = 64 * 1024
#: Bytes of a chunk's size line.
MAX_SIZE_LINE_BYTES = 1024
#: How many times the largest body a chunked body may have, size lines included.
MAX_CHUNK_OVERHEAD = 8
#: What ends a head, and a chunked body's trailers.
HEAD_END = b"\r\n\r\n"

_BARE_LINE_FEED = re.compile(rb"(?<!\r)\n")
_LENGTH = re.compile(rb"\r\ncontent-length[ \t]*:[ \t]*([0-9]{1,18})[ \t]*\r\n", re.IGNORECASE)
_HEXADECIMAL = re.compile(rb"[0-9A-Fa-f]{1,16}")
_CHUNKED = re.compile(rb"\r\ntransfer-encoding[ \t]*:[^\r\n]*chunked", re.IGNORECASE)
_CONTINUE = re.compile(rb"\r\nexpect[ \t]*:[ \t]*100-continue[ \t]*(?=\r\n)", re.IGNORECASE)


class Arrived(Enum):
    """How much of a request has arrived."""

    #: Its end is missing.
    PART = auto()
    #: Its end is missing, and the client waits for "100 Continue".
    PART_ON_DEMAND = auto()
    #: All of it, or enough to see that it must be refused.
    WHOLE = auto()
    #: The head of a request whose body is too large to be kept in memory.
    LARGE = auto()
    #: More bytes than a head may have.
    HEAD_TOO_LARGE = auto()
    #: A chunked body that is almost all size lines.
    BODY_TOO_LARGE = auto()


class Framing:
    """Looks for the end of one request. Looks at no byte of a body twice."""

    def __init__(self, max_body_bytes: int) -> None:
        self._max_body_bytes = max_body_bytes
        self._searched = 0
        self._body_at = 0
        #: Where the body ends; None for a chunked one.
        self._end: int | None = None
        #: Where a chunked body's next size line or its trailers begin, and the bytes in the chunks before it.
        self._chunk_at = 0
        self._num_in_chunks = 0
        self._in_trailers = False

    def look(self, received: bytearray) -> Arrived:
        """How much has arrived. `received` has the request from its first byte, and has grown since the last call.

        If the client waits for "100 Continue", that header is removed from `received`, and the caller answers it.
        """
        if not self._body_at:
            arrived = self._look_at_head(received)
            if arrived is not None:
                return arrived
        if self._end is not None:
            return Arrived.WHOLE if len(received) >= self._end else Arrived.PART
        return self._look_at_chunks(received)

    def _look_at_head(self, received: bytearray) -> Arrived | None:
        """None once the head has arrived and the body is to be waited for."""
        end = received.find(HEAD_END, max(0, self._searched - len(HEAD_END) + 1))
        if _BARE_LINE_FEED.search(received, self._searched, end if end >= 0 else len(received)):
            return Arrived.WHOLE  # a line without a carriage return, which the parser refuses
        self._searched = len(received)
        if end < 0:
            return Arrived.PART if len(received) <= MAX_HEAD_BYTES else Arrived.HEAD_TOO_LARGE
        head = bytes(received[: end + len(HEAD_END)])
        self._body_at = len(head)
        length, chunked = _LENGTH.search(head), _CHUNKED.search(head)
        if (length is None) == (chunked is None):
            self._end = self._body_at  # no body, or two lengths, which the parser refuses
            return None
        if length is not None:
            self._end = self._body_at + int(length[1])
            if int(length[1]) > self._max_body_bytes:
                return Arrived.LARGE
        waits = _CONTINUE.search(head)
        if waits is not None:
            del received[waits.start() : waits.end()]
            self._body_at -= len(waits[0])
            self._end = None if self._end is None else self._end - len(waits[0])
        self._chunk_at = self._body_at
        return Arrived.PART_ON_DEMAND if waits is not None and len(received) == self._body_at != self._end else None

    def _look_at_chunks(self, received: bytearray) -> Arrived:
        if len(received) - self._body_at > MAX_CHUNK_OVERHEAD * self._max_body_bytes:
            return Arrived.BODY_TOO_LARGE
        while not self._in_trailers:
            missing = max(0, self._chunk_at - 2 - len(received))  # of the chunk before
            if self._num_in_chunks - missing > self._max_body_bytes:
                return Arrived.LARGE
            end = received.find(b"\r\n", self._chunk_at, self._chunk_at + MAX_SIZE_LINE_BYTES)
            if end < 0:
                too_long = len(received) >= self._chunk_at + MAX_SIZE_LINE_BYTES
                return Arrived.WHOLE if too_long else Arrived.PART
            size_line = bytes(received[self._chunk_at : end]).split(b";")[0].strip()
            if not _HEXADECIMAL.fullmatch(size_line):
                return Arrived.WHOLE  # not a chunk: the parser refuses it
            size = int(size_line, 16)
            if size:
                self._num_in_chunks += size
                self._chunk_at = end + 2 + size + 2
            else:
                self._in_trailers = True
                self._chunk_at = end  # the size line's own end is the first half of an empty trailer section's
        if received.find(HEAD_END, self._chunk_at) >= 0:
            return Arrived.WHOLE
        return Arrived.PART if len(received) - self._chunk_at <= MAX_HEAD_BYTES else Arrived.WHOLE
