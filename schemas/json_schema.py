"""JSON schemas as data: what can be said of one without an engine, and what it leaves open closed. Pure."""

from collections.abc import Iterator

#: Elements of a schema, names and values each; engines take seconds for more.
MAX_ELEMENTS = 20_000
#: Characters, elements or properties that no answer has: it ends after 32,768 tokens.
MOST_OF_ANY_ANSWER = 1_000_000
#: The keywords that say how many of them there must be at least.
LEAST = ("minLength", "minItems", "minProperties", "minContains")
#: The keywords whose values are data and no schemas.
DATA = ("const", "default", "enum", "example", "examples")
#: Keywords that add the demands of other schemas to those beside them.
COMPOSING = ("allOf", "anyOf", "oneOf", "$ref", "$dynamicRef", "if", "dependentSchemas")
#: The keywords whose values are schemas by name.
NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")


def closed(schema: dict[str, object]) -> dict[str, object]:
    """The same schema without the properties that it neither names nor forbids.

    A model that may invent properties seldom ends its answer. What is left as it is: a schema that puts together an
    object's properties from several schemas, each of which leaves those of the others open.
    """
    objects = [value for _, value in _members(schema) if isinstance(value, dict)]
    if any(_is_put_together(one) for one in objects):
        return schema
    whole = _closed(schema)
    assert isinstance(whole, dict)
    return whole


def _is_put_together(schema: dict[str, object]) -> bool:
    parts = schema.get("allOf")
    if isinstance(parts, list | tuple) and len(parts) > 1:
        return True
    return isinstance(schema.get("properties"), dict) and any(name in schema for name in COMPOSING)


def _closed(schema: object) -> object:
    """A schema, or a list of them, closed. Nested no deeper than `schemas.plain` allows."""
    if isinstance(schema, list | tuple):
        return [_closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    done: dict[str, object] = {}
    for name, value in schema.items():
        if name in NAMED and isinstance(value, dict):
            done[name] = {key: _closed(one) for key, one in value.items()}
        else:
            done[name] = value if name in DATA else _closed(value)
    if isinstance(schema.get("properties"), dict):
        done.setdefault("additionalProperties", False)
    return done


def check_bounds(schema: dict[str, object]) -> None:
    """Raise ValueError for a schema that is too large, or that asks for more than any answer can hold.

    It is walked without recursion, and must be a tree: as it was read from JSON.
    """
    for number, (name, value) in enumerate(_members(schema)):
        if number >= MAX_ELEMENTS:
            raise ValueError(f"it has more than {MAX_ELEMENTS} elements")
        if name in LEAST and isinstance(value, int | float) and value > MOST_OF_ANY_ANSWER:
            raise ValueError(f"{name} is {value}; no answer has more than {MOST_OF_ANY_ANSWER}")


def _members(schema: object) -> Iterator[tuple[str, object]]:
    """Every member and element within the schema, with the keyword that it belongs to; none for data."""
    waiting = [("", schema)]
    while waiting:
        name, value = waiting.pop()
        yield name, value
        if isinstance(value, dict):
            waiting += [(key if name not in DATA else name, member) for key, member in value.items()]
        elif isinstance(value, list | tuple):
            waiting += [(name, member) for member in value]
