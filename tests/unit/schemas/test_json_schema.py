import pytest

from schemas.json_schema import MAX_ELEMENTS, MOST_OF_ANY_ANSWER, check_bounds, closed


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "minLength": 10**9},
        {"properties": {"a": {"items": {"minItems": MOST_OF_ANY_ANSWER + 1}}}},
        {"anyOf": [{"minProperties": 1e300}]},
    ],
)
def test_more_than_any_answer_holds_is_refused(schema):
    with pytest.raises(ValueError, match="no answer has more than"):
        check_bounds(schema)


def test_a_schema_of_too_many_elements_is_refused():
    with pytest.raises(ValueError, match=f"more than {MAX_ELEMENTS} elements"):
        check_bounds({"enum": list(range(MAX_ELEMENTS))})


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "string", "minLength": MOST_OF_ANY_ANSWER, "maxLength": 10**12},
        {"const": {"minLength": 10**9}, "enum": [{"minItems": 10**9}]},
        {"properties": {"minLength": {"type": "integer", "minimum": 10**12}}},
    ],
)
def test_bounds_that_an_answer_can_keep_are_taken(schema):
    check_bounds(schema)


def test_objects_that_leave_other_properties_open_are_closed_at_every_depth():
    inner = {"type": "object", "properties": {"x": {}}}
    schema = {"$defs": {"A": inner}, "properties": {"a": {"$ref": "#/$defs/A"}, "b": {"items": inner}}}
    shut = {**inner, "additionalProperties": False}
    assert closed(schema) == {
        "$defs": {"A": shut},
        "properties": {"a": {"$ref": "#/$defs/A"}, "b": {"items": shut}},
        "additionalProperties": False,
    }
    assert "additionalProperties" not in inner


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        {"properties": {"a": {}}, "additionalProperties": {"type": "integer"}},
        {"allOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]},
        {"properties": {"a": {}}, "anyOf": [{"properties": {"b": {}}}]},
        {"items": {"properties": {"a": {}}, "$ref": "#/$defs/B"}},
        {"const": {"properties": {"a": {}}}},
    ],
)
def test_what_says_so_itself_or_is_put_together_is_left_open(schema):
    assert closed(schema) == schema
