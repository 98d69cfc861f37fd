"""The answer as a stream of facts: which text stood in the draft, which is the cloud's own.

Owns the splitting of new text at the borders of tokens. Pure: the engine says how many characters each token added.
"""

from collections import deque
from collections.abc import Iterator

from schemas.events import AcceptedText, CorrectedText, WrittenText

Piece = AcceptedText | CorrectedText | WrittenText


class TextEvents:
    """One answer told in order. Text may lag behind its tokens (stop strings, UTF-8 split across tokens)."""

    def __init__(self, *, has_draft: bool) -> None:
        self._has_draft = has_draft
        #: Characters of each token that are not told yet, and whether the token stood in the draft.
        self._untold: deque[tuple[int, bool]] = deque()
        self._position = 0

    def wrote_token(self, characters: int, *, accepted: bool) -> None:
        """A token was written that added so many characters."""
        self._untold.append((characters, accepted))

    def tell(self, text: str) -> Iterator[Piece]:
        """The next piece of the answer's text as facts: one for each run of tokens of the same kind."""
        while text:
            length, accepted = self._run(len(text))
            yield self._piece(text[:length], accepted=accepted)
            self._position += length
            text = text[length:]

    def _run(self, wanted: int) -> tuple[int, bool]:
        """Take the longest run of one kind, at most `wanted` characters; text without tokens is the cloud's own."""
        taken, kind = 0, False
        while self._untold and taken < wanted:
            characters, accepted = self._untold[0]
            if taken and accepted is not kind:
                return taken, kind
            self._untold.popleft()
            if not characters:
                continue
            kind = accepted
            part = min(characters, wanted - taken)
            taken += part
            if part < characters:
                self._untold.appendleft((characters - part, accepted))
        return (taken, kind) if taken else (wanted, False)

    def _piece(self, text: str, *, accepted: bool) -> Piece:
        if not self._has_draft:
            return WrittenText(position=self._position, text=text)
        if accepted:
            return AcceptedText(position=self._position, text=text)
        return CorrectedText(position=self._position, text=text)
