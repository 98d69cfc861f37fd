import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.batches.lines import BadLine, answered, custom_id_of, failed, job_id_of, not_run, number_of, read_line
from gateway.openai.errors import NoAnswer
from gateway.openai.models import ModelTable
from gateway.openai.shapes import Answer
from tests.samples import a_request, a_result

MODELS = ModelTable(["baseline"], {})
CHAT = {"model": "firstdraft", "messages": [{"role": "user", "content": "hello"}]}
ENDPOINTS = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"model": "firstdraft", "prompt": ["a", "b"]},
    "/v1/responses": {"model": "firstdraft", "input": "hello"},
    "/v1/jobs": {"prompt": "hello"},
}


def a_line(endpoint="/v1/chat/completions", **changes):
    body = ENDPOINTS[endpoint]
    return json.dumps({"custom_id": "c1", "method": "POST", "url": endpoint, "body": body} | changes).encode()


@pytest.mark.parametrize("endpoint", list(ENDPOINTS))
def test_a_line_of_every_endpoint_is_read_and_its_answers_written(endpoint):
    line = read_line(7, a_line(endpoint), endpoint, MODELS)
    assert (line.number, line.custom_id, len(line.jobs)) == (7, "c1", 2 if endpoint == "/v1/completions" else 1)
    request = a_request()
    answers = [Answer(request.request_id, a_result("yes"))] * len(line.jobs)
    entry = answered("batch_ab", line, request, answers)
    assert entry.endswith(b"\n")
    assert number_of(entry) == 7
    told = json.loads(entry)
    assert (told["id"], told["custom_id"], told["error"]) == ("batch_req_ab_7", "c1", None)
    assert told["response"]["status_code"] == 200
    assert "yes" in json.dumps(told["response"]["body"])


@pytest.mark.parametrize(
    ("raw", "code", "custom_id"),
    [
        (b"{", "invalid_json_line", None),
        (b"[1]", "missing_required_parameter", None),
        (b"[" * 100_000, "invalid_json_line", None),
        (a_line(custom_id=None), "missing_required_parameter", None),
        (a_line(method="GET"), "mismatched_endpoint", "c1"),
        (a_line(url="/v1/embeddings"), "mismatched_endpoint", "c1"),
        (a_line(body=None), "invalid_request", "c1"),
        (a_line(body=CHAT | {"max_tokens": 0}), "invalid_request", "c1"),
        (a_line(body=CHAT | {"model": "gpt-x"}), "invalid_request", "c1"),
        (a_line(body=CHAT | {"stream": True}), "invalid_request", "c1"),
    ],
)
def test_a_bad_line_says_what_is_wrong_with_it(raw, code, custom_id):
    with pytest.raises(BadLine) as bad:
        read_line(3, raw, "/v1/chat/completions", MODELS)
    assert (bad.value.code, custom_id_of(raw)) == (code, custom_id)


def test_a_line_that_is_submitted_again_has_the_same_jobs():
    assert job_id_of("b", 1, 0) == job_id_of("b", 1, 0)
    ids = {job_id_of(batch, number, choice) for batch in "ab" for number in range(3) for choice in range(2)}
    assert len(ids) == 12


def test_entries_of_the_error_file_name_their_line():
    assert number_of(not_run("batch_ab", 12, None, "x", "y")) == 12
    assert number_of(failed("batch_ab", 13, "c", NoAnswer(409, "It was cancelled.", "cancelled"))) == 13


#: Half a surrogate pair is JSON that UTF-8 has no bytes for.
TEXT = st.text() | st.just("\ud800")
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | TEXT, lambda v: st.lists(v) | st.dictionaries(TEXT, v)
)


@given(
    raw=st.binary()
    | JSON.map(lambda value: json.dumps(value).encode())
    | JSON.map(lambda body: a_line(body=body))
    | JSON.map(lambda custom_id: a_line(custom_id=custom_id)),
    endpoint=st.sampled_from(sorted(ENDPOINTS)),
)
def test_whatever_a_line_holds_it_is_read_or_refused(raw, endpoint):
    try:
        assert read_line(1, raw, endpoint, MODELS).jobs
    except BadLine as bad:
        entry = not_run("batch_ab", 1, custom_id_of(raw), bad.code, str(bad))
    else:
        return
    assert number_of(entry) == 1
