"""Phrases that an answer repeats: what followed its last tokens earlier, in the draft or in the answer itself.

Owns the look-up of last resort, for where the answer and its draft have parted: two models that word a thing
differently still share phrases, in another order (prompt lookup, suffix decoding). Pure; knows no engine.
"""

from collections.abc import Sequence

#: Tokens in a row that are looked up.
PHRASE = 2


class Echo:
    """Grows with the answer; a look-up takes constant time. The latest occurrence counts, the answer's own first."""

    def __init__(self, draft: Sequence[int]) -> None:
        self._draft = draft
        self._answer: list[int] = []
        self._in_draft = {tuple(draft[end - PHRASE : end]): end for end in range(PHRASE, len(draft))}
        self._in_answer: dict[tuple[int, ...], int] = {}

    def advance(self, token: int) -> None:
        """Take the answer's next token."""
        if len(self._answer) >= PHRASE:
            self._in_answer[tuple(self._answer[-PHRASE:])] = len(self._answer)
        self._answer.append(token)

    def continuation(self, most: int) -> list[int]:
        """What followed these last tokens before; nothing if they are new."""
        last = tuple(self._answer[-PHRASE:])
        if (end := self._in_answer.get(last)) is not None:
            return self._answer[end : end + most]
        if (end := self._in_draft.get(last)) is not None:
            return list(self._draft[end : end + most])
        return []
