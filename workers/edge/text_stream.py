"""From token bytes to text: characters cut across tokens are waited for, stop strings end the text.

Pure. Knows no tokens and no vocabulary, only bytes in order.
"""

import codecs
from collections.abc import Sequence


class TextStream:
    """The text of one answer as it comes. Bytes that are no UTF-8 become U+FFFD, one that never ended is dropped."""

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._stop = tuple(stop)
        self._held = ""
        self._shown: list[str] = []
        #: Characters shown so far.
        self.num_shown = 0
        #: Whether a stop string has appeared. The text ends before it.
        self.stopped = False

    def push(self, raw: bytes) -> str:
        """New text that no stop string can take back any more; empty once `stopped`."""
        if self.stopped:
            return ""
        self._held += self._decoder.decode(raw)
        found = [place for stop in self._stop if (place := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            shown, self._held = self._held[: min(found)], ""
            return self._show(shown)
        keep = max((_overlap(self._held, stop) for stop in self._stop), default=0)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return self._show(shown)

    def finish(self) -> str:
        """What was held back as the possible beginning of a stop string, now that nothing follows."""
        shown, self._held = self._held, ""
        return self._show(shown)

    @property
    def text(self) -> str:
        """All that has been shown."""
        return "".join(self._shown)

    def _show(self, text: str) -> str:
        if text:
            self._shown.append(text)
            self.num_shown += len(text)
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
