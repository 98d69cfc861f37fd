import json
import math

import hypothesis.strategies as st
import pytest
from hypothesis import given
from pydantic import ValidationError

from gateway.http.problems import MAX_SHOWN, invalid, problem, refused, shown
from gateway.jobs.request_validation import Refused
from schemas.requests import JobRequest


def document(response):
    assert response.content_type == "application/problem+json"
    return json.loads(response.get_data())


def test_a_problem_has_the_members_of_rfc_9457_and_its_own():
    response = problem(503, "Away", "Try again.", headers={"Retry-After": "1"}, spare=2)
    assert response.status_code == 503
    assert response.headers["Retry-After"] == "1"
    assert document(response) == {
        "type": "about:blank",
        "title": "Away",
        "status": 503,
        "detail": "Try again.",
        "spare": 2,
    }


def test_what_pydantic_finds_is_told_field_by_field():
    with pytest.raises(ValidationError) as found:
        JobRequest.model_validate({"prompt": "hello", "max_tokens": 0, "confidence": {"threshold": 3}})
    response = invalid(found.value)
    body = document(response)
    assert response.status_code == 422
    assert {(error["field"], error["value"]) for error in body["errors"]} == {
        ("max_tokens", 0),
        ("confidence.threshold", 3),
    }
    assert "max_tokens" in body["detail"]
    assert "confidence.threshold" in body["detail"]


def test_what_admission_finds_is_told_the_same_way():
    body = document(refused(Refused("policy", "bold", "must be one of a, b")))
    assert body["errors"] == [{"field": "policy", "value": "bold", "reason": "must be one of a, b"}]
    assert body["detail"] == "policy: must be one of a, b (it is 'bold')"


def test_a_long_value_is_cut_so_that_no_prompt_is_repeated():
    cut = shown("secret " * 1000)
    assert len(cut) == MAX_SHOWN + 1
    assert cut.endswith("…")


@pytest.mark.parametrize("value", [math.nan, math.inf, object(), {1, 2}, b"raw", "\ud800"])
def test_a_value_that_is_no_json_is_still_shown(value):
    assert json.dumps(shown(value), allow_nan=False)


def test_a_value_that_is_nested_too_deeply_is_still_shown():
    value: list[object] = []
    for _ in range(100_000):
        value = [value]
    assert json.dumps(shown(value))


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(), lambda v: st.lists(v) | st.dictionaries(st.text(), v)
    )
)
def test_whatever_the_value_the_problem_is_a_json_document(value):
    body = document(refused(Refused("field", value, "no")))
    assert body["errors"][0]["field"] == "field"
    assert len(json.dumps(body["errors"][0]["value"], ensure_ascii=False)) <= 2 * MAX_SHOWN + 10
