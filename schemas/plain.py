"""Plain values: those that JSON and msgpack both carry unchanged, not nested too deeply. Pure."""

import json
import math
import re
from typing import NoReturn

#: The deepest nesting of a value; engines and validation walk schemas recursively.
MAX_DEPTH = 64
#: The least and the greatest integer of msgpack.
LEAST_INTEGER, GREATEST_INTEGER = -(2**63), 2**64 - 1
#: The JSON escape of one half of a surrogate pair. Whether the other half follows is known only after parsing.
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class NoText(ValueError):
    """A string in a JSON document has half of a surrogate pair. `field` says where: `a.0.b`."""

    def __init__(self, field: str, value: str) -> None:
        super().__init__("half of a surrogate pair is no text")
        self.field = field
        self.value = value


def read_json(raw: bytes) -> object:
    """The document. Raises ValueError if it is not JSON in UTF-8; `NoText`, a ValueError, for half a surrogate pair.

    Python's parser accepts more: other encodings, `NaN`, and halves of surrogate pairs, which cannot be encoded later.
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
    """Whether the string has half of a surrogate pair, which cannot be encoded."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def check_plain(value: object, depth: int = 0) -> None:
    """Raise ValueError for a value that msgpack or JSON cannot carry unchanged, or that is nested too deeply."""
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
