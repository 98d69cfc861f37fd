import json
import math

import hypothesis.strategies as st
import pytest
from flask import Flask
from hypothesis import given
from pydantic import ValidationError

from gateway.http.error_handlers import ANSWERS, add_error_handlers
from gateway.http.errors import MAX_SHOWN, ApiError, invalid, shown
from gateway.jobs.request_validation import Refused
from schemas.requests import JobRequest


@pytest.fixture(scope="module")
def answer_to():
    """How the API answers a request whose view raises this error."""
    app, raised = Flask("test"), []
    add_error_handlers(app)

    def view():
        raise raised.pop()

    for path in ("/v1/jobs", "/v1/models"):
        app.add_url_rule(path, path, view)

    def answer(error, path="/v1/jobs"):
        raised.append(error)
        return app.test_client().get(path)

    return answer


def document(response):
    assert response.content_type == "application/problem+json"
    return json.loads(response.get_data())


def test_a_problem_has_the_members_of_rfc_9457_and_its_own(answer_to):
    response = answer_to(ApiError(503, "Away", "Try again.", headers={"Retry-After": "1"}, code="away"))
    assert response.status_code == 503
    assert response.headers["Retry-After"] == "1"
    assert document(response) == {
        "type": "about:blank",
        "title": "Away",
        "status": 503,
        "detail": "Try again.",
        "code": "away",
    }


def test_an_openai_route_answers_the_same_error_in_openais_form(answer_to):
    response = answer_to(ApiError(503, "Away", "Try again.", headers={"Retry-After": "1"}, code="away"), "/v1/models")
    assert (response.status_code, response.content_type) == (503, "application/json")
    assert response.headers["Retry-After"] == "1"
    assert response.json == {
        "error": {"message": "Try again.", "type": "server_error", "param": None, "code": "away"},
    }


def test_an_exception_is_answered_by_the_row_of_its_nearest_class(answer_to):
    class Special(Refused):
        """Has no row of its own."""

    assert Special not in ANSWERS
    assert document(answer_to(Special("policy", "bold", "no")))["errors"][0]["field"] == "policy"


def test_an_exception_without_a_row_is_a_500_and_tells_nothing_of_itself(answer_to):
    response = answer_to(ZeroDivisionError("a secret"))
    assert response.status_code == 500
    assert "secret" not in json.dumps(document(response))


def test_what_pydantic_finds_is_told_field_by_field(answer_to):
    with pytest.raises(ValidationError) as found:
        JobRequest.model_validate({"prompt": "hello", "max_tokens": 0, "confidence": {"threshold": 3}})
    response = answer_to(invalid(found.value))
    body = document(response)
    assert response.status_code == 422
    assert {(error["field"], error["value"]) for error in body["errors"]} == {
        ("max_tokens", 0),
        ("confidence.threshold", 3),
    }
    assert "max_tokens" in body["detail"]
    assert "confidence.threshold" in body["detail"]


def test_what_admission_finds_is_told_the_same_way(answer_to):
    body = document(answer_to(Refused("policy", "bold", "must be one of a, b")))
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
def test_whatever_the_value_the_problem_is_a_json_document(answer_to, value):
    body = document(answer_to(Refused("field", value, "no")))
    assert body["errors"][0]["field"] == "field"
    assert len(json.dumps(body["errors"][0]["value"], ensure_ascii=False)) <= 2 * MAX_SHOWN + 10
