"""Reading JSON: what is taken, what is refused, and how a string that is no text is named."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.plain import NoText, read_json

HALF = "\ud800"
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(json_values, st.booleans())
def test_what_json_can_say_is_read_as_it_is(value, escaped):
    assert read_json(json.dumps(value, ensure_ascii=escaped).encode()) == value


@pytest.mark.parametrize(
    ("document", "field"),
    [
        (HALF, ""),
        ({"a": HALF}, "a"),
        ({"a": [1, {"b": f"x{HALF}y"}]}, "a.1.b"),
        ({"a": {HALF: 1}}, "a"),
        ([["a"], ["\udfff"]], "1.0"),
        ({"a": "\udc00\ud800"}, "a"),
    ],
)
def test_half_a_surrogate_pair_is_named(document, field):
    with pytest.raises(NoText) as refusal:
        read_json(json.dumps(document).encode())
    assert refusal.value.field == field


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"NaN", b"[Infinity]", b"-Infinity", b'"\xff"', b'"\xed\xa0\x80"', b"\xff\xfe1\x00", b"1 2"]
)
def test_what_is_no_json_is_refused(raw):
    with pytest.raises(ValueError):  # noqa: PT011 - its kinds have nothing else in common
        read_json(raw)


@given(st.integers(0, 3_000))
def test_depth_does_not_break_the_check(depth):
    raw = b"[" * depth + b'"\\ud800"' + b"]" * depth
    with pytest.raises((NoText, RecursionError)):
        read_json(raw)
