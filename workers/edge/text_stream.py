"""Incremental detokenization: from the bytes of tokens to text, with characters kept whole and stop strings applied.

Pure. Knows no tokens and no vocabulary, only bytes in order.
"""

import codecs
from collections.abc import Sequence


class TextStream:
    """The text of one answer. Bytes that are no UTF-8 become U+FFFD; a character that is never completed is dropped."""

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._stop = tuple(stop)
        #: The end of the text that may be the beginning of a stop string.
        self._pending = ""
        #: All the text returned so far.
        self.text = ""
        #: Whether a stop string has appeared; the text ends before it.
        self.stopped = False

    def push(self, raw: bytes) -> str:
        """Add bytes; returns new text that cannot be part of a stop string any more. Empty once `stopped`."""
        if self.stopped:
            return ""
        text = self._pending + self._decoder.decode(raw)
        found = [place for stop in self._stop if (place := text.find(stop)) >= 0]
        self.stopped = bool(found)
        end = min(found) if found else len(text) - max((_overlap(text, stop) for stop in self._stop), default=0)
        self._pending = "" if found else text[end:]
        self.text += text[:end]
        return text[:end]

    def finish(self) -> str:
        """End the text; returns what was held back as a possible beginning of a stop string."""
        text, self._pending = self._pending, ""
        self.text += text
        return text


def _overlap(text: str, stop: str) -> int:
    """The length of the longest suffix of `text` that is a proper prefix of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
