"""JSON schemas as data: checks their size, and closes objects that allow any property. Pure."""

from collections.abc import Iterator

#: The most names and values in a schema; engines take seconds for more.
MAX_ELEMENTS = 20_000
#: More characters, elements or properties than an answer can have, since it ends after 32,768 tokens.
MOST_OF_ANY_ANSWER = 1_000_000
#: The keywords for the least number of them.
LEAST = ("minLength", "minItems", "minProperties", "minContains")
#: The keywords whose values are data, not schemas.
DATA = ("const", "default", "enum", "example", "examples")
#: The keywords that combine other schemas with the keywords beside them.
COMPOSING = ("allOf", "anyOf", "oneOf", "$ref", "$dynamicRef", "if", "dependentSchemas")
#: The keywords whose values map names to schemas.
NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")


def closed(schema: dict[str, object]) -> dict[str, object]:
    """The same schema, with `additionalProperties: false` where an object does not say whether it allows others.

    A model that may invent properties seldom ends its answer. A schema that combines several schemas for one object
    stays as it is: each of them must allow the properties of the others.
    """
    objects = [value for _, value in _members(schema) if isinstance(value, dict)]
    if any(_is_combined(member) for member in objects):
        return schema
    whole = _closed(schema)
    assert isinstance(whole, dict)
    return whole


def _is_combined(schema: dict[str, object]) -> bool:
    parts = schema.get("allOf")
    if isinstance(parts, list | tuple) and len(parts) > 1:
        return True
    return isinstance(schema.get("properties"), dict) and any(name in schema for name in COMPOSING)


def _closed(schema: object) -> object:
    """Close a schema or a list of them. Recursive: `schemas.plain` limits the depth."""
    if isinstance(schema, list | tuple):
        return [_closed(member) for member in schema]
    if not isinstance(schema, dict):
        return schema
    done: dict[str, object] = {}
    for name, value in schema.items():
        if name in NAMED and isinstance(value, dict):
            done[name] = {key: _closed(member) for key, member in value.items()}
        else:
            done[name] = value if name in DATA else _closed(value)
    if isinstance(schema.get("properties"), dict):
        done.setdefault("additionalProperties", False)
    return done


def check_bounds(schema: dict[str, object]) -> None:
    """Raise ValueError for a schema that is too large, or that requires more than any answer can have.

    Not recursive. The schema must be a tree, as it is when read from JSON.
    """
    for number, (name, value) in enumerate(_members(schema)):
        if number >= MAX_ELEMENTS:
            raise ValueError(f"it has more than {MAX_ELEMENTS} elements")
        if name in LEAST and isinstance(value, int | float) and value > MOST_OF_ANY_ANSWER:
            raise ValueError(f"{name} is {value}; no answer has more than {MOST_OF_ANY_ANSWER}")


def _members(schema: object) -> Iterator[tuple[str, object]]:
    """All members and elements in the schema, each with its keyword; members of data have the keyword of the data."""
    waiting = [("", schema)]
    while waiting:
        name, value = waiting.pop()
        yield name, value
        if isinstance(value, dict):
            waiting += [(key if name not in DATA else name, member) for key, member in value.items()]
        elif isinstance(value, list | tuple):
            waiting += [(name, member) for member in value]
