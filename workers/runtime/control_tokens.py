"""A conversation in a model's tokens, in which only the chat template writes control tokens: what people say is text.

Tokenizers know `<|im_end|>` in a rendered prompt by its letters alone, whoever wrote them. Where the text of a message
could be taken for a control token, the prompt is rendered once more with such places broken up; what is whole then is
the template's own, and all between is tokenized as text. Every other prompt is tokenized as one; the two ways give the
same tokens. Knows no engine: each tier brings its template and its tokenizer.
"""

import re
import secrets
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from schemas.requests import Message

#: Digits of the number that stands where a text was broken up: 128 bits, which nobody guesses. They are digits because
#: no filter of a template (`trim`, `upper`, `tojson`) changes those.
BREAK_DIGITS = 39
#: What an added token looks like with which a template marks something, `<think>` or `[INST]`.
BRACKETED = re.compile(r"[<\[].+[>\]]")
#: What one looks like that controls, whatever its vocabulary calls it.
LOOKS_LIKE_CONTROL = re.compile(r"<\|.+\|>")

Render = Callable[[Sequence[Message]], str]


@dataclass(frozen=True)
class AddedToken:
    """A token that a tokenizer knows by its letters, before it looks at anything else."""

    text: str
    token_id: int
    #: What the vocabulary calls control or special. Others are text with a token of its own, as runs of spaces are.
    is_control: bool
    #: Whether it takes the white space before or behind it with it.
    strips_left: bool = False
    strips_right: bool = False


class Tokenizer(Protocol):
    """One model's. Every method may be called from any thread."""

    def added_tokens(self) -> Iterable[AddedToken]:
        """All tokens that are known by their letters."""

    def rendered_tokens(self, rendered: str) -> list[int]:
        """A rendered prompt with every added token known, `first_token` in front."""

    def text_tokens(self, text: str) -> list[int]:
        """A text in which no control token is known; nothing is put in front."""

    @property
    def first_token(self) -> int | None:
        """What a prompt begins with, unless its template writes it; None: nothing."""


class PromptTokens:
    """One model's template and tokenizer. Thread-safe as far as they are. `template` is the template's source."""

    def __init__(self, tokenizer: Tokenizer, render: Render, template: str) -> None:
        self._tokenizer, self._render = tokenizer, render
        # A single letter is no mark, since it could not be broken up.
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
        """The conversation up to where the answer begins. Raises what rendering raises."""
        rendered = self._render(messages)
        if not any(self._marks.may_make_one(message.content) for message in messages):
            return self._tokenizer.rendered_tokens(rendered)
        number = str(secrets.randbelow(10**BREAK_DIGITS)).zfill(BREAK_DIGITS)
        broken = self._render(_with_contents(messages, lambda text: self._marks.broken(text, number)))
        if broken.replace(number, "") != rendered:
            # The template looks into its messages, as for the `</think>` of earlier answers: let it find that.
            broken = self._render(_with_contents(messages, lambda text: self._control.broken(text, number)))
        return list(self._whole_marks_apart(broken, number))

    def of_text(self, text: str) -> list[int]:
        """A text alone, with no control token in it whatever it says."""
        tokens = self._tokenizer.text_tokens(text)
        if self._ids.isdisjoint(tokens):
            return tokens
        # A mark that is no control token to the vocabulary is known in any text, but not in two pieces.
        return [token for piece in self._marks.pieces(text) for token in self._tokenizer.text_tokens(piece)]

    def _whole_marks_apart(self, broken: str, number: str) -> Iterator[int]:
        """The tokens of a prompt whose whole marks are the template's."""
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
    """Finds some strings of at least two characters in texts. Takes linear time, however many they are."""

    def __init__(self, strings: Iterable[str]) -> None:
        self._strings = frozenset(strings)
        lengths = defaultdict[str, set[int]](set)
        for string in self._strings:
            lengths[string[:2]].add(len(string))
        #: The lengths, longest first, of those that begin with two characters.
        self._lengths = {begin: sorted(found, reverse=True) for begin, found in lengths.items()}
        self._begin = re.compile("|".join(map(re.escape, self._lengths)) or r"(?!)")
        self._heads = {string[:size] for string in self._strings for size in range(1, len(string))}
        self._tails = {string[size:] for string in self._strings for size in range(1, len(string))}
        self._longest = max(map(len, self._strings), default=0)

    def whole(self, text: str) -> Iterator[tuple[int, str]]:
        """Those in the text and where they begin, in order, the longest where several do; none overlaps another."""
        end = 0
        for start, string in self._all(text):
            if start >= end:
                yield start, string
                end = start + len(string)

    def may_make_one(self, text: str) -> bool:
        """Whether one is in the text, in any spelling that Unicode takes for the same, or its ends are parts of one."""
        plain = text if text.isascii() else unicodedata.normalize("NFKC", text)
        return any(next(self._all(said), None) for said in {text, plain}) or any(self._open_ends(text.strip()))

    def pieces(self, text: str) -> list[str]:
        """The text, cut within each of them."""
        cuts = [start + 1 for start, _ in self._all(text)]
        return [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]

    def broken(self, text: str, number: str) -> str:
        """The text with the number within each of them, and at its ends where they are parts of one."""
        core = text.strip()
        before, behind = (number if is_open else "" for is_open in self._open_ends(core))
        start = text.index(core)
        inside = number.join(self.pieces(core))
        return f"{text[:start]}{before}{inside}{behind}{text[start + len(core) :]}"

    def _all(self, text: str) -> Iterator[tuple[int, str]]:
        found = self._begin.search(text)
        while found:
            start = found.start()
            sizes = self._lengths[found.group()]
            string = next(
                (text[start : start + size] for size in sizes if text[start : start + size] in self._strings), ""
            )
            if string:
                yield start, string
            found = self._begin.search(text, start + 1)

    def _open_ends(self, text: str) -> tuple[bool, bool]:
        """Whether the text begins with the end of one, and ends with the beginning of one."""
        sizes = range(1, min(len(text), self._longest - 1) + 1)
        return any(text[:size] in self._tails for size in sizes), any(text[-size:] in self._heads for size in sizes)


def _marks_something(text: str, template: str) -> bool:
    return bool(LOOKS_LIKE_CONTROL.fullmatch(text) or (BRACKETED.fullmatch(text) and text in template))


def _with_contents(messages: Sequence[Message], change: Callable[[str], str]) -> list[Message]:
    return [message.model_copy(update={"content": change(message.content)}) for message in messages]
