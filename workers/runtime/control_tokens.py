"""Tokenizes conversations so that only the chat template can write control tokens; messages are always plain text.

Tokenizers recognise `<|im_end|>` in a rendered prompt by its text, whether the template or a user wrote it. If part of
a message could be mistaken for a control token, the prompt is rendered again with a random number inserted into each
such part. The control tokens that are still whole were written by the template, and everything between them is
tokenized as plain text. All other prompts are tokenized in one call. Both ways give the same tokens. Knows no engine:
each tier provides its template and tokenizer.
"""

import re
import secrets
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from schemas.requests import Message

#: Digits of the random number, which has 128 bits and cannot be guessed. Digits, because template filters (`trim`,
#: `upper`, `tojson`) do not change them.
BREAK_DIGITS = 39
#: Added tokens that templates use as marks look like this: `<think>`, `[INST]`.
BRACKETED = re.compile(r"[<\[].+[>\]]")
#: Control tokens look like this, even if the vocabulary does not flag them as special.
LOOKS_LIKE_CONTROL = re.compile(r"<\|.+\|>")

Render = Callable[[Sequence[Message]], str]


@dataclass(frozen=True)
class AddedToken:
    """A token that a tokenizer recognises by its text, before it tokenizes the rest."""

    text: str
    token_id: int
    #: Whether the vocabulary flags it as control or special. Other added tokens are plain text, like runs of spaces.
    is_control: bool
    #: Whether white space before or after it is removed.
    strips_left: bool = False
    strips_right: bool = False


class Tokenizer(Protocol):
    """One model's tokenizer. Every method may be called from any thread."""

    def added_tokens(self) -> Iterable[AddedToken]:
        """All tokens that the tokenizer recognises by their text."""

    def rendered_tokens(self, rendered: str) -> list[int]:
        """Tokenize a rendered prompt, recognising all added tokens, with `first_token` in front."""

    def text_tokens(self, text: str) -> list[int]:
        """Tokenize a text without recognising control tokens, and without `first_token`."""

    @property
    def first_token(self) -> int | None:
        """The token that begins every prompt; None if there is none, or if the template writes it."""


class PromptTokens:
    """Tokenizes with one model's template and tokenizer, and is as thread-safe as they. `template`: its source."""

    def __init__(self, tokenizer: Tokenizer, render: Render, template: str) -> None:
        self._tokenizer, self._render = tokenizer, render
        # Tokens of one character cannot be broken.
        marks = {
            token.text: token
            for token in tokenizer.added_tokens()
            if len(token.text) > 1 and (token.is_control or _marks_something(token.text, template))
        }
        self._by_text = marks
        self._ids = frozenset(token.token_id for token in marks.values())
        self._marks = _Finder(marks)
        self._control = _Finder(text for text, token in marks.items() if token.is_control)

    def of(self, messages: Sequence[Message]) -> list[int]:
        """The tokens of the conversation, up to where the answer begins. Raises the template's errors."""
        rendered = self._render(messages)
        if not any(self._marks.may_form_one(message.content) for message in messages):
            return self._tokenizer.rendered_tokens(rendered)
        number = str(secrets.randbelow(10**BREAK_DIGITS)).zfill(BREAK_DIGITS)
        broken = self._render(_with_contents(messages, lambda text: self._marks.broken(text, number)))
        if broken.replace(number, "") != rendered:
            # The template searches the messages' text, for example for `</think>`: break only the control tokens.
            broken = self._render(_with_contents(messages, lambda text: self._control.broken(text, number)))
        return list(self._tokens_between_marks(broken, number))

    def of_text(self, text: str) -> list[int]:
        """The tokens of a text outside of any template; none of them is a control token."""
        tokens = self._tokenizer.text_tokens(text)
        if self._ids.isdisjoint(tokens):
            return tokens
        # Marks that the vocabulary does not flag as special are recognised in any text, unless they are cut in two.
        return [token for piece in self._marks.pieces(text) for token in self._tokenizer.text_tokens(piece)]

    def _tokens_between_marks(self, broken: str, number: str) -> Iterator[int]:
        """The tokens of a prompt in which every unbroken mark was written by the template."""
        marks = [(start, self._by_text[text]) for start, text in self._marks.whole(broken)]
        first = self._tokenizer.first_token
        if first is not None and not (marks and marks[0][0] == 0 and marks[0][1].token_id == first):
            yield first
        place, strip = 0, False
        for start, mark in marks:
            text = broken[place:start].replace(number, "")
            text = text.lstrip() if strip else text
            yield from self.of_text(text.rstrip() if mark.strips_left else text)
            yield mark.token_id
            place, strip = start + len(mark.text), mark.strips_right
        text = broken[place:].replace(number, "")
        yield from self.of_text(text.lstrip() if strip else text)


class _Finder:
    """Finds strings of at least two characters in texts. Time is linear in the text, whatever the number of strings."""

    def __init__(self, strings: Iterable[str]) -> None:
        self._strings = frozenset(strings)
        lengths = defaultdict[str, set[int]](set)
        for string in self._strings:
            lengths[string[:2]].add(len(string))
        #: The lengths of the strings by their first two characters, longest first.
        self._lengths = {begin: sorted(found, reverse=True) for begin, found in lengths.items()}
        self._begin = re.compile("|".join(map(re.escape, self._lengths)) or r"(?!)")
        self._heads = {string[:size] for string in self._strings for size in range(1, len(string))}
        self._tails = {string[size:] for string in self._strings for size in range(1, len(string))}
        self._longest = max(map(len, self._strings), default=0)

    def whole(self, text: str) -> Iterator[tuple[int, str]]:
        """Positions and strings found in the text, in order and without overlaps; the longest of several matches."""
        end = 0
        for start, string in self._all(text):
            if start >= end:
                yield start, string
                end = start + len(string)

    def may_form_one(self, text: str) -> bool:
        """Whether the text contains a string, also after Unicode's NFKC, or begins or ends with a part of one."""
        plain = text if text.isascii() else unicodedata.normalize("NFKC", text)
        return any(next(self._all(form), None) for form in {text, plain}) or any(self._open_ends(text.strip()))

    def pieces(self, text: str) -> list[str]:
        """The text, cut inside each of the strings in it."""
        cuts = [start + 1 for start, _ in self._all(text)]
        return [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]

    def broken(self, text: str, number: str) -> str:
        """The text with the number inside each of the strings, and at each end that is a part of one."""
        core = text.strip()
        before, behind = (number if is_open else "" for is_open in self._open_ends(core))
        start = text.index(core)
        inside = number.join(self.pieces(core))
        return f"{text[:start]}{before}{inside}{behind}{text[start + len(core) :]}"

    def _all(self, text: str) -> Iterator[tuple[int, str]]:
        match = self._begin.search(text)
        while match:
            start = match.start()
            sizes = self._lengths[match.group()]
            string = next(
                (text[start : start + size] for size in sizes if text[start : start + size] in self._strings), ""
            )
            if string:
                yield start, string
            match = self._begin.search(text, start + 1)

    def _open_ends(self, text: str) -> tuple[bool, bool]:
        """Whether the text begins with the end of one of the strings, and whether it ends with the beginning of one."""
        sizes = range(1, min(len(text), self._longest - 1) + 1)
        return any(text[:size] in self._tails for size in sizes), any(text[-size:] in self._heads for size in sizes)


def _marks_something(text: str, template: str) -> bool:
    return bool(LOOKS_LIKE_CONTROL.fullmatch(text) or (BRACKETED.fullmatch(text) and text in template))


def _with_contents(messages: Sequence[Message], change: Callable[[str], str]) -> list[Message]:
    return [message.model_copy(update={"content": change(message.content)}) for message in messages]
