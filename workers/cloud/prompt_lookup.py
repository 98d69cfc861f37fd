"""Phrases that an answer repeats: what followed its last tokens earlier, in the answer, its draft or its prompt.

Owns the look-up of last resort, for where the answer and its draft have parted: two models that word a thing
differently still share phrases, in another order, and take phrases from the question (prompt lookup, LLMA). The
longer the phrase that matched, the likelier what followed it (suffix decoding, Oliaro et al. 2024). Pure; knows no
engine.
"""

from collections.abc import Sequence

#: The longest run of tokens that is looked up.
LONGEST_PHRASE = 4
#: The last tokens of a prompt in which phrases are looked up: they are taken in while a step waits, 2 ms a thousand.
MOST_PROMPT_TOKENS = 4096


class PromptLookup:
    """Grows with the answer; a look-up takes constant time. The longest phrase counts, the answer's own first."""

    def __init__(self, draft: Sequence[int], prompt: Sequence[int] = ()) -> None:
        self._answer = _Source()
        self._sources = (self._answer, _Source(draft), _Source(prompt[-MOST_PROMPT_TOKENS:]))

    def advance(self, token: int) -> None:
        """Take the answer's next token."""
        self._answer.append(token)

    def continuation(self, most: int) -> tuple[list[int], int]:
        """What followed the last tokens before, at most so many, and how many tokens matched; none if they are new."""
        written = self._answer.tokens
        for length in range(min(LONGEST_PHRASE, len(written)), 0, -1):
            phrase = tuple(written[-length:])
            for source in self._sources:
                if (end := source.ends.get(phrase)) is not None:
                    return source.tokens[end : end + most], length
        return [], 0


class _Source:
    """A text, and where each of its phrases that something follows ends last."""

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
