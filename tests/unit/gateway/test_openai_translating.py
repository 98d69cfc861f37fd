import pytest
from pydantic import ValidationError

from gateway.http.errors import ApiError, field_error
from gateway.jobs.request_validation import Refused
from gateway.openai.errors import no_answer, openai_error
from gateway.openai.models import ModelTable, UnknownModel
from gateway.openai.responses import response_job
from gateway.openai.translation import ANY_OBJECT, chat_jobs, completion_jobs
from schemas.events import Failed
from schemas.openai_chat import ChatCompletionRequest, CompletionRequest
from schemas.openai_responses import ResponseRequest
from schemas.results import Failure, FailureKind

TURNS = [{"role": "user", "content": "hello"}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


def chat(**body):
    return chat_jobs(ChatCompletionRequest.model_validate({"model": "m", "messages": TURNS} | body), None)


def complete(**body):
    return completion_jobs(CompletionRequest.model_validate({"model": "m"} | body), "edge_only")


def test_everything_that_means_something_here_reaches_the_job():
    (job,) = chat(
        max_tokens=5,
        max_completion_tokens=7,
        temperature=0.5,
        top_p=0.9,
        stop=["a", "b"],
        seed=2**31 + 4,
        frequency_penalty=0.5,
        presence_penalty=-0.5,
        logit_bias={"7": -100},
        logprobs=True,
        top_logprobs=3,
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}},
        firstdraft={"confidence": {"threshold": 0.9}, "top_k": 5},
    )
    assert (job.max_tokens, job.temperature, job.top_p, job.stop, job.seed) == (7, 0.5, 0.9, ("a", "b"), 4)
    assert (job.frequency_penalty, job.presence_penalty, job.logit_bias) == (0.5, -0.5, {7: -100.0})
    assert (job.logprobs, job.top_logprobs, job.json_schema, job.top_k) == (True, 3, SCHEMA, 5)
    assert job.confidence.threshold == 0.9


def test_what_is_null_is_left_to_the_defaults():
    assert chat(temperature=None, stop=None, n=None, tools=None, logit_bias=None) == chat()


def test_every_choice_is_a_job_with_a_seed_of_its_own():
    assert [job.seed for job in chat(n=3, seed=5)] == [5, 6, 7]
    assert [job.seed for job in chat(n=2)] == [None, None]


def test_roles_and_parts_are_understood():
    messages = [
        {"role": "developer", "content": "be brief", "name": "x"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ]
    (job,) = chat(messages=messages)
    assert [(turn.role, turn.content) for turn in job.messages] == [("system", "be brief"), ("user", "ab")]


def test_a_json_object_may_be_asked_for_without_a_schema():
    assert chat(response_format={"type": "json_object"})[0].json_schema == ANY_OBJECT
    assert chat(response_format={"type": "text"})[0].json_schema is None


def test_a_json_object_keeps_the_schema_beside_it():
    (job,) = chat(response_format={"type": "json_object", "schema": {"required": ["a"]}})
    assert job.json_schema == {"type": "object", "required": ["a"]}
    assert chat(response_format={"type": "json_object", "schema": SCHEMA})[0].json_schema == SCHEMA


@pytest.mark.parametrize(
    "form",
    [
        {"type": "json_object", "colour": "blue"},
        {"type": "json_schema", "json_schema": {"schema": SCHEMA, "colour": "blue"}},
        {"type": "grammar", "grammar": "root ::= [a-z]"},
    ],
)
def test_a_form_with_what_is_not_known_is_refused_and_not_half_obeyed(form):
    with pytest.raises(ValidationError):
        chat(response_format=form)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"colour": "blue"}, "colour"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content"),
        ({"messages": [*TURNS, {"role": "assistant", "content": "x"}]}, "messages"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "schema": SCHEMA}}, "response_format.schema"),
        ({"response_format": {"type": "text", "schema": SCHEMA}}, "response_format.schema"),
        ({"response_format": {"type": "json_object", "json_schema": {"schema": {}}}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_object", "schema": {"minItems": 10**9}}}, "json_schema"),
        ({"logit_bias": {"-1": 5}}, "logit_bias.-1.[key]"),
        ({"max_tokens": 10**9}, "max_tokens"),
        ({"firstdraft": {"top_k": -1}}, "top_k"),
    ],
)
def test_what_would_change_the_answer_and_cannot_is_refused(body, field):
    with pytest.raises(Refused) as refusal:
        chat(**body)
    assert refusal.value.field == field


@pytest.mark.parametrize("form", [{"type": "json_schema"}, {"type": "text", "schema": SCHEMA}])
def test_a_responses_format_without_its_schema_or_with_one_too_many_is_refused_by_the_bodys_own_field(form):
    body = ResponseRequest.model_validate({"model": "m", "input": "hello", "text": {"format": form}})
    with pytest.raises(Refused) as refusal:
        response_job(body, None, ())
    assert refusal.value.field == "text.format.schema"


@pytest.mark.parametrize(
    "body", [{"user": "u"}, {"store": True}, {"tools": []}, {"tool_choice": "auto"}, {"modalities": ["text"]}]
)
def test_what_changes_nothing_is_ignored(body):
    assert chat(**body) == chat()


def test_each_prompt_of_a_completion_has_its_choices_beside_each_other():
    jobs = complete(prompt=["a", "b"], n=2, logprobs=2)
    assert [job.prompt for job in jobs] == ["a", "a", "b", "b"]
    assert {(job.max_tokens, job.policy, job.logprobs, job.top_logprobs) for job in jobs} == {
        (16, "edge_only", True, 2)
    }


@pytest.mark.parametrize("prompt", [[1, 2], [], [["a"]]])
def test_token_ids_are_no_prompt(prompt):
    with pytest.raises(Refused):
        complete(prompt=prompt)


def test_model_names_pick_policies():
    table = ModelTable(["baseline", "edge_only"], {"gpt-4o": "edge_only"})
    assert table.policy("firstdraft") is None
    assert table.policy("firstdraft:baseline") == "baseline"
    assert table.policy("gpt-4o") == "edge_only"
    assert [model.id for model in table.listed().data] == [
        "firstdraft",
        "firstdraft:baseline",
        "firstdraft:edge_only",
        "gpt-4o",
    ]
    with pytest.raises(UnknownModel):
        table.policy("gpt-3")
    with pytest.raises(ValueError, match="model_aliases"):
        ModelTable(["baseline"], {"x": "bold"})


def test_api_errors_become_openais_errors():
    status, error = openai_error(ApiError(422, "x", "d", fields=[field_error("max_tokens", 0, "r")]))
    assert (status, error.error.type, error.error.param) == (400, "invalid_request_error", "max_tokens")
    missing = [field_error("model", None, "r")]
    assert openai_error(ApiError(422, "x", "d", fields=missing))[0] == 400
    status, error = openai_error(ApiError(404, "x", "d", fields=missing, code="model_not_found"))
    assert (status, error.error.param, error.error.code) == (404, "model", "model_not_found")
    assert openai_error(ApiError(503, "x", "d"))[1].error.type == "server_error"


@pytest.mark.parametrize(
    ("kind", "status", "code"),
    [
        (FailureKind.PROMPT_TOO_LONG, 400, "context_length_exceeded"),
        (FailureKind.ENGINE_ERROR, 500, "engine_error"),
        (FailureKind.ATTEMPTS_EXHAUSTED, 500, "attempts_exhausted"),
    ],
)
def test_failures_become_openais_errors(kind, status, code):
    answered, error = openai_error(no_answer(Failed(failure=Failure(kind=kind, message="m"))))
    assert (answered, error.error.code) == (status, code)
