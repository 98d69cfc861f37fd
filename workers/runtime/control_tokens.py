"""Tokenizes conversations so that only the chat template can write control tokens; messages are always plain text.

Tokenizers recognise `<|im_end|>` in a rendered prompt by its letters, whoever wrote them. Where a message could be
mistaken for a control token, the prompt is rendered again with a random number inside such places; the control tokens
that are still whole are the template's, and everything between them is tokenized as plain text. All other prompts are
tokenized in one go; both ways give the same tokens. Knows no engine: each tier brings its template and its tokenizer.
"""

import re
import secrets
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from schemas.requests import Message

#: Digits of the random number: 128 bits, which nobody guesses. Digits, because no filter of a template (`trim`,
#: `upper`, `tojson`) changes them.
BREAK_DIGITS = 39
#: Added tokens with which a template marks something look like this: `<think>`, `[INST]`.
BRACKETED = re.compile(r"[<\[].+[>\]]")
#: Control tokens look like this, even where the vocabulary does not call them special.
LOOKS_LIKE_CONTROL = re.compile(r"<\|.+\|>")

Render = Callable[[Sequence[Message]], str]


@dataclass(frozen=True)
class AddedToken:
    """A token that a tokenizer recognises by its text, before it tokenizes the rest."""

    text: str
    token_id: int
    #: Whether the vocabulary calls it control or special. Others are text with a token of its own, like runs of spaces.
    is_control: bool
    #: Whether it swallows the white space before or behind it.
    strips_left: bool = False
    strips_right: bool = False


class Tokenizer(Protocol):
    """One model's tokenizer. Every method may be called from any thread."""

    def added_tokens(self) -> Iterable[AddedToken]:
        """All tokens that the tokenizer recognises by their text."""

    def rendered_tokens(self, rendered: str) -> list[int]:
        """The tokens of a rendered prompt in which every added token is recognised, `first_token` in front."""

    def text_tokens(self, text: str) -> list[int]:
        """The tokens of a text in which no control token is recognised; nothing is put in front."""

    @property
    def first_token(self) -> int | None:
        """The token that begins a prompt; None where there is none, or the template writes it."""


class PromptTokens:
    """One model's template and tokenizer, as thread-safe as they are. `template` is the template's source."""

    def __init__(self, tokenizer: Tokenizer, render: Render, template: str) -> None:
        self._tokenizer, self._render = tokenizer, render
        # A single letter could not be broken up.
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
        """The tokens of the conversation up to where the answer begins. Raises what rendering raises."""
        rendered = self._render(messages)
        if not any(self._marks.may_form_one(message.content) for message in messages):
            return self._tokenizer.rendered_tokens(rendered)
        number = str(secrets.randbelow(10**BREAK_DIGITS)).zfill(BREAK_DIGITS)
        broken = self._render(_with_contents(messages, lambda text: self._marks.broken(text, number)))
        if broken.replace(number, "") != rendered:
            # The template reads its messages, for example for the `</think>` of earlier answers, which it must find.
            broken = self._render(_with_contents(messages, lambda text: self._control.broken(text, number)))
        return list(self._tokens_between_marks(broken, number))

    def of_text(self, text: str) -> list[int]:
        """The tokens of a text alone, none of which is a control token."""
        tokens = self._tokenizer.text_tokens(text)
        if self._ids.isdisjoint(tokens):
            return tokens
        # Tokens that the vocabulary does not call special are recognised in any text, but not in two pieces.
        return [token for piece in self._marks.pieces(text) for token in self._tokenizer.text_tokens(piece)]

    def _tokens_between_marks(self, broken: str, number: str) -> Iterator[int]:
        """The tokens of a prompt in which every whole mark is the template's."""
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
    """Finds a set of strings of at least two characters in texts, in time linear in the text however many there are."""

    def __init__(self, strings: Iterable[str]) -> None:
        self._strings = frozenset(strings)
        lengths = defaultdict[str, set[int]](set)
        for string in self._strings:
            lengths[string[:2]].add(len(string))
        #: For each beginning of two characters the lengths of the strings, longest first.
        self._lengths = {begin: sorted(found, reverse=True) for begin, found in lengths.items()}
        self._begin = re.compile("|".join(map(re.escape, self._lengths)) or r"(?!)")
        self._heads = {string[:size] for string in self._strings for size in range(1, len(string))}
        self._tails = {string[size:] for string in self._strings for size in range(1, len(string))}
        self._longest = max(map(len, self._strings), default=0)

    def whole(self, text: str) -> Iterator[tuple[int, str]]:
        """The strings in the text with their positions, in order, the longest where several match, without overlaps."""
        end = 0
        for start, string in self._all(text):
            if start >= end:
                yield start, string
                end = start + len(string)

    def may_form_one(self, text: str) -> bool:
        """Whether the text contains one, also after Unicode's NFKC, or begins or ends with a part of one."""
        plain = text if text.isascii() else unicodedata.normalize("NFKC", text)
        return any(next(self._all(form), None) for form in {text, plain}) or any(self._open_ends(text.strip()))

    def pieces(self, text: str) -> list[str]:
        """The text, cut inside each of the strings in it."""
        cuts = [start + 1 for start, _ in self._all(text)]
        return [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]

    def broken(self, text: str, number: str) -> str:
        """The text with the number inside each of the strings, and at an end that is a part of one."""
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
