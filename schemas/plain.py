"""What can cross a process boundary as it is: plain JSON values of a sane depth. Pure."""

import json
import math
import re
from typing import NoReturn

#: Levels of nesting that a value may have; engines walk schemas recursively, and so does their validation.
MAX_DEPTH = 64
#: msgpack's integers.
LEAST_INTEGER, GREATEST_INTEGER = -(2**63), 2**64 - 1
#: How JSON escapes one half of a surrogate pair. Whether the other half is beside it, only reading tells.
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class NoText(ValueError):
    """A string of a JSON document that is no text, and where it is: `a.0.b`."""

    def __init__(self, field: str, value: str) -> None:
        super().__init__("half of a surrogate pair is no text")
        self.field = field
        self.value = value


def read_json(raw: bytes) -> object:
    """The document. Raises ValueError for what is no JSON in UTF-8, and `NoText`, which is one, for the rest.

    Python's reader takes more than that: other encodings, `NaN`, and escapes that stand for no character, which break
    whatever writes the string later.
    """
    text = raw.decode("utf-8-sig")
    document = json.loads(text, parse_constant=_refuse_constant)
    if _ESCAPED_SURROGATE.search(text):
        _check_strings(document)
    return document


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _check_strings(document: object) -> None:
    unchecked: list[tuple[str, object]] = [("", document)]
    while unchecked:
        field, value = unchecked.pop()
        if isinstance(value, str):
            if has_surrogate(value):
                raise NoText(field, value)
        elif isinstance(value, dict):
            for name, member in value.items():
                if has_surrogate(name):
                    raise NoText(field, name)
                unchecked.append((f"{field}.{name}".lstrip("."), member))
        elif isinstance(value, list):
            unchecked += [(f"{field}.{place}".lstrip("."), member) for place, member in enumerate(value)]


def has_surrogate(text: str) -> bool:
    """Whether the string holds half of a surrogate pair, which no encoding can write."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def check_plain(value: object, depth: int = 0) -> None:
    """Raise ValueError for what msgpack or JSON cannot carry unchanged."""
    if depth > MAX_DEPTH:
        raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep")
    if isinstance(value, dict):
        members = [*value.keys(), *value.values()]
    elif isinstance(value, list | tuple):
        members = list(value)
    else:
        members = []
        _check_leaf(value)
    for member in members:
        check_plain(member, depth + 1)


def _check_leaf(value: object) -> None:
    match value:
        case None | bool():
            pass
        case int():
            if not LEAST_INTEGER <= value <= GREATEST_INTEGER:
                raise ValueError("an integer in it is beyond 64 bits")
        case float():
            if not math.isfinite(value):
                raise ValueError(f"{value} is no JSON number")
        case str():
            if has_surrogate(value):
                raise ValueError("half of a surrogate pair is no text")
        case _:
            raise ValueError(f"{type(value).__name__} is no JSON value")
