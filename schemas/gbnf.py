"""Translates GBNF, the grammar format of requests, to Lark's syntax; errors say line and column.

It reads llama.cpp's grammars without references to token ids. Pure, and linear in the text. The gateway refuses
grammars that no engine could read; how expensive a grammar is, `workers.runtime.constraint_check` finds out.
"""

import re
from dataclasses import dataclass, field

#: The deepest nesting of groups; engines read a grammar recursively.
MAX_DEPTH = 64
#: The largest bound of a repetition (llama.cpp's own); engines write each repetition out.
MAX_REPETITIONS = 2_000
#: The rule with which every answer begins.
ROOT = "root"
#: The first line of a grammar for llguidance. Without it, where only one text can follow, llguidance forces the tokens
#: into which the tokenizer splits that text. A tokenizer that reads `<|im_end|>` as a control token would force that
#: token, and vLLM would end the request.
HEADER = '%llguidance {"no_forcing": true}'
#: Any character: a dot, or a class that excludes nothing.
ANY = r"/[\x{0}-\x{10FFFF}]/"
#: Halves of surrogate pairs, which are not characters.
SURROGATES = range(0xD800, 0xE000)
#: The largest code point.
MAX_CODE_POINT = 0x10FFFF

_NAME = re.compile(r"[A-Za-z0-9_-]+")
_SPACE = re.compile(r"(?:[ \t]|#[^\r\n]*)*")
_SPACE_AND_LINES = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")
_COUNTS = re.compile(r"\{[ \t\r\n]*(\d+)[ \t\r\n]*(?:(,)[ \t\r\n]*(\d*)[ \t\r\n]*)?\}")
#: The number of digits in an escape.
_DIGITS = {"x": 2, "u": 4, "U": 8}
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\", '"': '"', "[": "[", "]": "]"}


class GrammarError(ValueError):
    """The text is not a GBNF grammar; the message says where and why."""


def as_lark(text: str) -> str:
    """The same language in llguidance's dialect of Lark. Raises `GrammarError`.

    Each character is a terminal. Longer terminals would need a lexer, which always takes the longest match:
    `[a-z]+ "x"` would not match `abx`.
    """
    reader = _Reader(text)
    rules = reader.rules()
    if ROOT not in rules:
        raise GrammarError(f"the grammar has no rule `{ROOT}`")
    for name, place in reader.referred.items():
        if name not in rules:
            raise reader.error(f"there is no rule `{name}`", place)
    lines = [f"{reader.lark_name(name)}: {body}" for name, body in rules.items()]
    lines += [f"g{number}: {body}" for number, body in enumerate(reader.groups)]
    return "\n".join([HEADER, *lines, ""])


@dataclass
class _Reader:
    """A recursive-descent parser that writes Lark's syntax as it reads."""

    text: str
    place: int = 0
    depth: int = 0
    #: The place of the first reference to each rule.
    referred: dict[str, int] = field(default_factory=dict)
    #: The body of each group, the innermost first.
    groups: list[str] = field(default_factory=list)
    _names: dict[str, str] = field(default_factory=dict)

    def error(self, reason: str, place: int | None = None) -> GrammarError:
        place = self.place if place is None else place
        line = self.text.count("\n", 0, place) + 1
        column = place - self.text.rfind("\n", 0, place)
        return GrammarError(f"the grammar is no GBNF: {reason} (line {line}, column {column})")

    def lark_name(self, name: str) -> str:
        """A unique name that Lark's syntax allows."""
        return "start" if name == ROOT else self._names.setdefault(name, f"r{len(self._names)}")

    def rules(self) -> dict[str, str]:
        rules: dict[str, str] = {}
        self._skip(_SPACE_AND_LINES)
        while self.place < len(self.text):
            begin = self.place
            name = self._name()
            if name in rules:
                raise self.error(f"the rule `{name}` is there twice", begin)
            self._skip(_SPACE)
            if not self.text.startswith("::=", self.place):
                raise self.error("`::=` is expected behind a rule's name")
            self.place += 3
            self._skip(_SPACE_AND_LINES)
            rules[name] = self._alternatives(_SPACE)
            if self._next() not in {"", "\r", "\n"}:
                raise self.error(f"{self._next()!r} is not expected here")
            self._skip(_SPACE_AND_LINES)
        return rules

    def _alternatives(self, space: "re.Pattern[str]") -> str:
        alternatives = [self._sequence(space)]
        while self._next() == "|":
            self.place += 1
            self._skip(_SPACE_AND_LINES)
            alternatives.append(self._sequence(space))
        return " | ".join(alternatives)

    def _sequence(self, space: "re.Pattern[str]") -> str:
        elements: list[str] = []
        while (element := self._element()) is not None:
            self._skip(space)
            if (repetition := self._repetition()) is not None:
                element = f"{element}{repetition}" if repetition else '""'
                self._skip(space)
            elements.append(element)
        return " ".join(elements) or '""'

    def _element(self) -> str | None:
        """The next element, or None where a sequence ends."""
        begin = self._next()
        if begin == '"':
            return self._literal()
        if begin == "[":
            return self._class()
        if begin == "(":
            return self._group()
        if begin == ".":
            self.place += 1
            return ANY
        if begin in {"<", "!"}:
            raise self.error("references to tokens are not supported")
        if _NAME.match(self.text, self.place):
            place = self.place
            name = self._name()
            self.referred.setdefault(name, place)
            return self.lark_name(name)
        return None

    def _group(self) -> str:
        begin = self.place
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self.error(f"groups are nested more than {MAX_DEPTH} deep")
        self.place += 1
        self._skip(_SPACE_AND_LINES)
        inner = self._alternatives(_SPACE_AND_LINES)
        if self._next() != ")":
            raise self.error("`)` is missing for this group", begin)
        self.place += 1
        self.depth -= 1
        # As a rule of its own, since llguidance reads only about twenty nested groups.
        self.groups.append(inner)
        return f"g{len(self.groups) - 1}"

    def _repetition(self) -> str | None:
        """The repetition of the element before it, in Lark's syntax; empty for zero times, None if there is none."""
        mark = self._next()
        if mark and mark in "*+?":
            self.place += 1
            return mark
        if mark != "{":
            return None
        counts = _COUNTS.match(self.text, self.place)
        if counts is None:
            raise self.error("a repetition is {n}, {n,} or {n,m}")
        least, comma, most = counts.groups()
        bounds = [_bound(number) for number in (least, most) if number]
        if None in bounds:
            raise self.error(f"a repetition's bounds must be at most {MAX_REPETITIONS}")
        if bounds != sorted(bounds, key=lambda bound: bound or 0):
            raise self.error("a repetition's first bound is above its second")
        self.place = counts.end()
        if bounds[-1] == 0 and (most or not comma):  # llguidance has no repetition of zero times
            return ""
        return f"{{{bounds[0]}{comma or ''}{bounds[1] if most else ''}}}"

    def _literal(self) -> str:
        begin = self.place
        self.place += 1
        characters: list[str] = []
        while self._next() != '"':
            if not self._next():
                raise self.error("the literal has no end", begin)
            characters.append(f"/{_code(self._character())}/")
        self.place += 1
        if len(characters) == 1:
            return characters[0]
        return f"({' '.join(characters)})" if characters else '""'

    def _class(self) -> str:
        begin = self.place
        self.place += 1
        negated = self._next() == "^"
        self.place += negated
        ranges: list[tuple[int, int]] = []
        while self._next() != "]":
            if not self._next():
                raise self.error("the character class has no end", begin)
            place = self.place
            first = last = self._character()
            if self._next() == "-" and self.text[self.place + 1 : self.place + 2] not in {"]", ""}:
                self.place += 1
                last = self._character()
            if last < first:
                raise self.error("a range of characters ends before it begins", place)
            ranges.append((first, last))
        self.place += 1
        if not ranges:
            if negated:
                return ANY
            raise self.error("a class of no characters matches nothing", begin)
        members = "".join(_code(first) if first == last else f"{_code(first)}-{_code(last)}" for first, last in ranges)
        return f"/[{'^' if negated else ''}{members}]/"

    def _character(self) -> int:
        """The code point of the next character, which may be escaped."""
        begin = self.place
        character = self.text[begin]
        self.place += 1
        if character == "\\":
            kind = self._next()
            self.place += 1
            if kind in _DIGITS:
                digits = self.text[self.place : self.place + _DIGITS[kind]]
                if not re.fullmatch(rf"[0-9A-Fa-f]{{{_DIGITS[kind]}}}", digits):
                    raise self.error(f"\\{kind} takes {_DIGITS[kind]} hexadecimal digits", begin)
                self.place += len(digits)
                code = int(digits, 16)
            elif kind in _ESCAPES:
                code = ord(_ESCAPES[kind])
            else:
                raise self.error(f"\\{kind} is no escape", begin)
        else:
            code = ord(character)
        if code in SURROGATES or code > MAX_CODE_POINT:
            raise self.error(f"U+{code:04X} is no character", begin)
        return code

    def _name(self) -> str:
        name = _NAME.match(self.text, self.place)
        if name is None:
            raise self.error("a rule's name is expected")
        self.place = name.end()
        return name[0]

    def _next(self) -> str:
        """The next character; empty at the end."""
        return self.text[self.place : self.place + 1]

    def _skip(self, space: "re.Pattern[str]") -> None:
        skipped = space.match(self.text, self.place)
        assert skipped is not None  # the patterns match the empty string
        self.place = skipped.end()


def _bound(digits: str) -> int | None:
    """The number, or None where it is too large."""
    few = len(digits.lstrip("0")) <= len(str(MAX_REPETITIONS))  # int() refuses thousands of digits
    return int(digits) if few and int(digits) <= MAX_REPETITIONS else None


def _code(code_point: int) -> str:
    """A character as an escape of a regular expression."""
    return rf"\x{{{code_point:X}}}"
