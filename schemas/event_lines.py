"""The lines of an event stream (`text/event-stream`) out of its bytes, as they come over the network. Pure.

A line ends at LF or CRLF and nowhere else. `str.splitlines`, and with it `httpx.Response.iter_lines`, ends lines at
U+2028, U+0085 and others too, which JSON holds as they are: a text with one of them would be torn.
"""


class EventLines:
    """Collects one stream's bytes."""

    def __init__(self) -> None:
        self._rest = b""

    def take(self, chunk: bytes) -> list[str]:
        """The lines that the chunk completes. What is no UTF-8 in them becomes U+FFFD."""
        *whole, self._rest = (self._rest + chunk).split(b"\n")
        return [line.removesuffix(b"\r").decode(errors="replace") for line in whole]

    def last(self) -> list[str]:
        """What came after the last line's end, where anything did."""
        return [self._rest.decode(errors="replace")] if self._rest else []
