"""What can cross a process boundary as it is: plain JSON values of a sane depth. Pure."""

import math

#: Levels of nesting that a value may have; engines walk schemas recursively, and so does their validation.
MAX_DEPTH = 64
#: msgpack's integers.
LEAST_INTEGER, GREATEST_INTEGER = -(2**63), 2**64 - 1


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
            if any("\ud800" <= character <= "\udfff" for character in value):
                raise ValueError("half of a surrogate pair is no text")
        case _:
            raise ValueError(f"{type(value).__name__} is no JSON value")
