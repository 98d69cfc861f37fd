"""Where the next request of a connection ends, so that no thread needs to wait for its bytes. Pure.

It is no parser: gunicorn's own reads the same bytes afterwards and decides what they mean. What cannot be understood
here is called whole, so that the parser refuses it at once.
"""

import re
from enum import Enum, auto

#: Bytes of a request's head: the request line and all headers.
MAX_HEAD_BYTES = 64 * 1024
#: Bytes of a chunk's size line.
MAX_SIZE_LINE_BYTES = 1024
#: How many times as large as the largest body a chunked one may be with its size lines.
MAX_CHUNK_OVERHEAD = 8
#: What ends a head, and a chunked body's trailers.
HEAD_END = b"\r\n\r\n"

_BARE_LINE_FEED = re.compile(rb"(?<!\r)\n")
_LENGTH = re.compile(rb"\r\ncontent-length[ \t]*:[ \t]*([0-9]{1,18})[ \t]*\r\n", re.IGNORECASE)
_HEXADECIMAL = re.compile(rb"[0-9A-Fa-f]{1,16}")
_CHUNKED = re.compile(rb"\r\ntransfer-encoding[ \t]*:[^\r\n]*chunked", re.IGNORECASE)
_CONTINUE = re.compile(rb"\r\nexpect[ \t]*:[ \t]*100-continue[ \t]*(?=\r\n)", re.IGNORECASE)


class Come(Enum):
    """How much of a request has come."""

    #: Its end is missing.
    PART = auto()
    #: Its end is missing, and the client waits to be told to go on.
    PART_ON_DEMAND = auto()
    #: All of it, or enough to see that it is to be refused.
    WHOLE = auto()
    #: The head, of a body that is not to be kept in memory.
    LARGE = auto()
    #: More than a head may have.
    HEAD_TOO_LARGE = auto()
    #: Far more of a chunked body than the text in it.
    BODY_TOO_LARGE = auto()


class Framing:
    """Looks for the end of one request in what has come so far. Looks at no byte of a body twice."""

    def __init__(self, max_body_bytes: int) -> None:
        self._max_body_bytes = max_body_bytes
        self._searched = 0
        self._body_at = 0
        #: Where the body ends; None for a chunked one.
        self._end: int | None = None
        #: Where a chunked body's next size line, or its trailers, begin; and the bytes of its chunks before that.
        self._chunk_at = 0
        self._num_in_chunks = 0
        self._in_trailers = False

    def look(self, received: bytearray) -> Come:
        """How much has come. `received` holds the request from its first byte on, and has grown since the last look.

        Where the client waits for "100 Continue", that header is taken out of `received`: the caller answers it.
        """
        if not self._body_at:
            come = self._look_at_head(received)
            if come is not None:
                return come
        if self._end is not None:
            return Come.WHOLE if len(received) >= self._end else Come.PART
        return self._look_at_chunks(received)

    def _look_at_head(self, received: bytearray) -> Come | None:
        """None once the head is there and its body may be waited for."""
        end = received.find(HEAD_END, max(0, self._searched - len(HEAD_END) + 1))
        if _BARE_LINE_FEED.search(received, self._searched, end if end >= 0 else len(received)):
            return Come.WHOLE  # a line that ends without a carriage return, which the parser refuses
        self._searched = len(received)
        if end < 0:
            return Come.PART if len(received) <= MAX_HEAD_BYTES else Come.HEAD_TOO_LARGE
        head = bytes(received[: end + len(HEAD_END)])
        self._body_at = len(head)
        length, chunked = _LENGTH.search(head), _CHUNKED.search(head)
        if (length is None) == (chunked is None):
            self._end = self._body_at  # no body, or two lengths, which the parser refuses
            return None
        if length is not None:
            self._end = self._body_at + int(length[1])
            if int(length[1]) > self._max_body_bytes:
                return Come.LARGE
        waits = _CONTINUE.search(head)
        if waits is not None:
            del received[waits.start() : waits.end()]
            self._body_at -= len(waits[0])
            self._end = None if self._end is None else self._end - len(waits[0])
        self._chunk_at = self._body_at
        return Come.PART_ON_DEMAND if waits is not None and len(received) == self._body_at != self._end else None

    def _look_at_chunks(self, received: bytearray) -> Come:
        num_come = len(received) - self._body_at
        if num_come > MAX_CHUNK_OVERHEAD * self._max_body_bytes:
            return Come.BODY_TOO_LARGE
        while not self._in_trailers:
            missing = max(0, self._chunk_at - 2 - len(received))  # of the chunk before
            if self._num_in_chunks - missing > self._max_body_bytes:
                return Come.LARGE
            end = received.find(b"\r\n", self._chunk_at, self._chunk_at + MAX_SIZE_LINE_BYTES)
            if end < 0:
                too_long = len(received) >= self._chunk_at + MAX_SIZE_LINE_BYTES
                return Come.WHOLE if too_long else Come.PART
            size_line = bytes(received[self._chunk_at : end]).split(b";")[0].strip()
            if not _HEXADECIMAL.fullmatch(size_line):
                return Come.WHOLE  # no chunk: the parser refuses it
            size = int(size_line, 16)
            if size:
                self._num_in_chunks += size
                self._chunk_at = end + 2 + size + 2
            else:
                self._in_trailers = True
                self._chunk_at = end  # the size line's own end is the first half of an empty trailer section's
        if received.find(HEAD_END, self._chunk_at) >= 0:
            return Come.WHOLE
        return Come.PART if len(received) - self._chunk_at <= MAX_HEAD_BYTES else Come.WHOLE
