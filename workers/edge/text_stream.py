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
        self._pending = ""
        self._shown: list[str] = []
        #: Characters returned so far.
        self.num_shown = 0
        #: Whether a stop string has appeared; the text ends before it.
        self.stopped = False

    def push(self, raw: bytes) -> str:
        """Add bytes; returns new text that cannot be part of a stop string any more. Empty once `stopped`."""
        if self.stopped:
            return ""
        self._pending += self._decoder.decode(raw)
        found = [place for stop in self._stop if (place := self._pending.find(stop)) >= 0]
        if found:
            self.stopped = True
            shown, self._pending = self._pending[: min(found)], ""
            return self._show(shown)
        keep = max((_overlap(self._pending, stop) for stop in self._stop), default=0)
        cut = len(self._pending) - keep
        shown, self._pending = self._pending[:cut], self._pending[cut:]
        return self._show(shown)

    def finish(self) -> str:
        """End the text; returns what was held back as a possible beginning of a stop string."""
        shown, self._pending = self._pending, ""
        return self._show(shown)

    @property
    def text(self) -> str:
        """All the text returned so far."""
        return "".join(self._shown)

    def _show(self, text: str) -> str:
        if text:
            self._shown.append(text)
            self.num_shown += len(text)
        return text


def _overlap(text: str, stop: str) -> int:
    """The length of the longest suffix of `text` that is a proper prefix of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
