"""Splits the bytes of an event stream (`text/event-stream`) into lines as they arrive. Pure.

A line ends at LF or CRLF and nowhere else. `str.splitlines`, and with it `httpx.Response.iter_lines`, ends lines at
U+2028, U+0085 and others too, which JSON does not escape: it would tear a text with one of them.
"""


class EventLines:
    """Collects the bytes of one stream."""

    def __init__(self) -> None:
        self._rest = b""

    def take(self, chunk: bytes) -> list[str]:
        """The lines that the chunk completes. Bytes that are not UTF-8 become U+FFFD."""
        *whole, self._rest = (self._rest + chunk).split(b"\n")
        return [line.removesuffix(b"\r").decode(errors="replace") for line in whole]

    def last(self) -> list[str]:
        """The last line, if the stream did not end with a line's end."""
        return [self._rest.decode(errors="replace")] if self._rest else []
