"""The answer's text as events that say which of it was accepted from the draft and which the cloud wrote itself.

Owns the splitting of new text at the borders of tokens. Pure: the engine says how many characters each token added.
"""

from collections import deque
from collections.abc import Iterator

from schemas.events import AcceptedText, CorrectedText, WrittenText


class TextEvents:
    """The events of one answer, in order. Text may lag behind its tokens (stop strings, UTF-8 split across tokens)."""

    def __init__(self, *, has_draft: bool) -> None:
        self._has_draft = has_draft
        #: Of each token whose text has not come yet: its characters still to come, and whether it was accepted.
        self._pending: deque[tuple[int, bool]] = deque()
        self._position = 0

    def add_token(self, characters: int, *, accepted: bool) -> None:
        """Note that the answer's next token adds this many characters to its text."""
        self._pending.append((characters, accepted))

    def of(self, text: str) -> Iterator[AcceptedText | CorrectedText | WrittenText]:
        """The events of the answer's next text: one for each run of tokens of the same kind."""
        while text:
            length, accepted = self._next_run(len(text))
            kind = (AcceptedText if accepted else CorrectedText) if self._has_draft else WrittenText
            yield kind(position=self._position, text=text[:length])
            self._position += length
            text = text[length:]

    def _next_run(self, max_characters: int) -> tuple[int, bool]:
        """Take the longest run of one kind; text without tokens counts as the cloud's own."""
        taken, kind = 0, False
        while self._pending and taken < max_characters:
            characters, accepted = self._pending[0]
            if taken and accepted is not kind:
                return taken, kind
            self._pending.popleft()
            if not characters:
                continue
            kind = accepted
            part = min(characters, max_characters - taken)
            taken += part
            if part < characters:
                self._pending.appendleft((characters - part, accepted))
        return (taken, kind) if taken else (max_characters, False)
