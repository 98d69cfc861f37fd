"""One line of a batch: what it asks for, and what is written about it. Pure."""

import json
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from gateway.jobs.request_validation import Refused
from gateway.openai.models import ModelTable
from gateway.openai.responses import note_of, response_job, response_of
from gateway.openai.shapes import Answer, ChatDialect, TextDialect
from gateway.openai.translation import chat_jobs, completion_jobs, prompts_of
from schemas.jobs import Job
from schemas.openai_chat import ChatCompletionRequest, CompletionRequest
from schemas.openai_files import Endpoint
from schemas.openai_models import OpenAIError
from schemas.openai_responses import ResponseRequest
from schemas.plain import NoText, read_json
from schemas.requests import AcceptedRequest, JobRequest
from schemas.wire import Wire

BodyT = TypeVar("BodyT", bound=BaseModel)
#: What comes of a line's requests, given them as they were accepted and their answers.
Concluded = Callable[[AcceptedRequest, Sequence[Answer]], Wire]


class BadLine(Exception):
    """The line asks for nothing that can be done. It fails alone."""

    def __init__(self, custom_id: str | None, code: str, message: str) -> None:
        super().__init__(message)
        self.custom_id = custom_id
        self.code = code


@dataclass(frozen=True)
class Line:
    """What a line asks for: jobs, and how their answers become its own."""

    number: int
    custom_id: str
    jobs: Sequence[JobRequest]
    conclude: Concluded


def custom_id_of(raw: bytes) -> str | None:
    """The line's `custom_id` if it can be read at all."""
    try:
        line = read_json(raw)
    except (ValueError, RecursionError):
        return None
    custom_id = line.get("custom_id") if isinstance(line, dict) else None
    return custom_id if isinstance(custom_id, str) else None


def read_line(number: int, raw: bytes, endpoint: Endpoint, models: ModelTable) -> Line:
    """The line. Raises `BadLine`."""
    custom_id = custom_id_of(raw)
    try:
        line = read_json(raw)
    except NoText as error:
        raise BadLine(custom_id, "invalid_json_line", f"line {number}: {error.field}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise BadLine(custom_id, "invalid_json_line", f"line {number} is no JSON: {error}") from error
    if not isinstance(line, dict) or custom_id is None:
        raise BadLine(custom_id, "missing_required_parameter", f"line {number} has no custom_id, which must be text")
    if line.get("method") != "POST" or line.get("url") != endpoint:
        reason = f"line {number}: method must be POST and url {endpoint}, the batch's own"
        raise BadLine(custom_id, "mismatched_endpoint", reason)
    try:
        jobs, conclude = _planned(endpoint, line.get("body"), models)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise BadLine(custom_id, "invalid_request", f"line {number}: {field}: {first['msg']}") from error
    except Refused as refusal:
        raise BadLine(custom_id, "invalid_request", f"line {number}: {refusal}") from refusal
    return Line(number, custom_id, jobs, conclude)


def job_id_of(batch_id: str, number: int, choice: int) -> str:
    """The id of a line's job: the same every time, so that a line that is submitted again is not done again."""
    return uuid.uuid5(uuid.NAMESPACE_URL, f"{batch_id}/{number}/{choice}").hex


def answered(batch_id: str, line: Line, first: AcceptedRequest, answers: Sequence[Answer]) -> bytes:
    """The line's entry in the output file."""
    response = {
        "status_code": 200,
        "request_id": first.request_id,
        "body": line.conclude(first, answers).model_dump(mode="json"),
    }
    return _entry(batch_id, line.number, line.custom_id, response, None)


def failed(batch_id: str, number: int, custom_id: str | None, status: int, error: OpenAIError) -> bytes:
    """The entry in the error file of a line whose request got an error."""
    response = {"status_code": status, "request_id": "", "body": error.model_dump(mode="json")}
    return _entry(batch_id, number, custom_id, response, None)


def not_run(batch_id: str, number: int, custom_id: str | None, code: str, message: str) -> bytes:
    """The entry in the error file of a line that was not run."""
    return _entry(batch_id, number, custom_id, None, {"code": code, "message": message})


def number_of(entry: bytes) -> int:
    """The number of the line that an entry is about."""
    number: str = json.loads(entry)["id"].rsplit("_", 1)[1]
    return int(number)


def _entry(batch_id: str, number: int, custom_id: str | None, response: object, error: object) -> bytes:
    entry_id = f"batch_req_{batch_id.removeprefix('batch_')}_{number}"
    entry = {"id": entry_id, "custom_id": custom_id, "response": response, "error": error}
    # Half a surrogate pair, which a line may hold, has no bytes; with a backslash it is JSON again.
    return json.dumps(entry, ensure_ascii=False, separators=(",", ":")).encode(errors="backslashreplace") + b"\n"


def _planned(endpoint: Endpoint, body: Any, models: ModelTable) -> tuple[list[JobRequest], Concluded]:
    if endpoint == "/v1/chat/completions":
        return _chat(ChatCompletionRequest.model_validate(body), models)
    if endpoint == "/v1/completions":
        return _completion(CompletionRequest.model_validate(body), models)
    if endpoint == "/v1/responses":
        return _response(ResponseRequest.model_validate(body), models)
    return [JobRequest.model_validate(body)], _job


def _chat(body: ChatCompletionRequest, models: ModelTable) -> tuple[list[JobRequest], Concluded]:
    _refuse_streams(body.stream)

    def conclude(first: AcceptedRequest, answers: Sequence[Answer]) -> Wire:
        dialect = ChatDialect(
            f"chatcmpl-{first.request_id}", int(first.accepted_at_s), body.model, logprobs=first.sampling.logprobs
        )
        return dialect.whole(answers)

    return chat_jobs(body, models.policy(body.model)), conclude


def _completion(body: CompletionRequest, models: ModelTable) -> tuple[list[JobRequest], Concluded]:
    _refuse_streams(body.stream)
    prompts = prompts_of(body)
    echoed = tuple(prompt for prompt in prompts for _ in range(body.n or 1)) if body.echo else ()

    def conclude(first: AcceptedRequest, answers: Sequence[Answer]) -> Wire:
        dialect = TextDialect(
            f"cmpl-{first.request_id}",
            int(first.accepted_at_s),
            body.model,
            echoed,
            len(prompts),
            logprobs=first.sampling.logprobs,
        )
        return dialect.whole(answers)

    return completion_jobs(body, models.policy(body.model)), conclude


def _response(body: ResponseRequest, models: ModelTable) -> tuple[list[JobRequest], Concluded]:
    _refuse_streams(body.stream)
    if body.previous_response_id is not None:
        raise Refused("previous_response_id", body.previous_response_id, "a batch's lines continue nothing")
    note = note_of(body)

    def conclude(first: AcceptedRequest, answers: Sequence[Answer]) -> Wire:
        return response_of(first, note, waits=False, result=answers[0].result)

    return [response_job(body, models.policy(body.model), ())], conclude


def _job(first: AcceptedRequest, answers: Sequence[Answer]) -> Wire:
    return Job(
        id=first.request_id,
        status="succeeded",
        policy=first.policy.name,
        created_at=first.accepted_at_s,
        result=answers[0].result,
    )


def _refuse_streams(stream: bool | None) -> None:
    if stream:
        raise Refused("stream", stream, "a batch's answers come whole")


#: How a batch's end is told about the lines that were not finished.
ENDINGS = {
    "expired": ("batch_expired", "The batch's time was over before this line was answered."),
    "cancelled": ("batch_cancelled", "The batch was cancelled before this line was answered."),
}
