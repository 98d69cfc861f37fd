"""Prompt lookup: what followed the answer's last tokens earlier, in the answer, its draft or its prompt.

Used where the answer and its draft differ: two models that word a thing differently still share phrases, in another
order, and take phrases from the question (prompt lookup; LLMA, Yang et al. 2023). The longer the phrase that matched,
the likelier what followed it (suffix decoding, Oliaro et al. 2024). Pure; knows no engine.
"""

from collections.abc import Sequence

#: The longest run of tokens that is looked up.
LONGEST_PHRASE = 4
#: Phrases are looked up in the last tokens of a prompt only: indexing a thousand delays a step by 2 ms.
MAX_PROMPT_TOKENS = 4096


class PromptLookup:
    """Grows with the answer; a look-up takes constant time. Prefers the longest phrase, then the answer's own."""

    def __init__(self, draft: Sequence[int], prompt: Sequence[int] = ()) -> None:
        self._answer = _Source()
        self._sources = (self._answer, _Source(draft), _Source(prompt[-MAX_PROMPT_TOKENS:]))

    def advance(self, token: int) -> None:
        """Take the answer's next token."""
        self._answer.append(token)

    def continuation(self, max_tokens: int) -> tuple[list[int], int]:
        """What followed the last tokens earlier, and how many of them matched; empty and 0 for a new phrase."""
        written = self._answer.tokens
        for length in range(min(LONGEST_PHRASE, len(written)), 0, -1):
            phrase = tuple(written[-length:])
            for source in self._sources:
                if (end := source.ends.get(phrase)) is not None:
                    return source.tokens[end : end + max_tokens], length
        return [], 0


class _Source:
    """A text, and the last end of each of its phrases that is followed by something."""

    def __init__(self, tokens: Sequence[int] = ()) -> None:
        self.tokens: list[int] = []
        self.ends: dict[tuple[int, ...], int] = {}
        for token in tokens:
            self.append(token)

    def append(self, token: int) -> None:
        end = len(self.tokens)
        for length in range(1, min(LONGEST_PHRASE, end) + 1):
            self.ends[tuple(self.tokens[end - length :])] = end
        self.tokens.append(token)
