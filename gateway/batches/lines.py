"""One line of a batch: what it asks for, and what is written about it. Pure."""

import json
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from gateway.http.errors import ApiError, dotted
from gateway.jobs.request_validation import Refused
from gateway.openai.errors import openai_error
from gateway.openai.models import ModelTable
from gateway.openai.responses import note_of, response_job, response_of
from gateway.openai.shapes import Answer, ChatDialect, TextDialect
from gateway.openai.translation import chat_jobs, completion_jobs
from schemas.jobs import Job
from schemas.openai_chat import ChatCompletionRequest, CompletionRequest
from schemas.openai_files import Endpoint
from schemas.openai_responses import ResponseRequest
from schemas.plain import NoText, read_json
from schemas.requests import AcceptedRequest, JobRequest
from schemas.wire import Wire

#: Makes the line's answer from its first accepted request and the answers of all its jobs.
MakeAnswer = Callable[[AcceptedRequest, Sequence[Answer]], Wire]
#: Code and message for the lines that a batch did not finish, by how it ended.
UNFINISHED = {
    "expired": ("batch_expired", "The batch's time was over before this line was answered."),
    "cancelled": ("batch_cancelled", "The batch was cancelled before this line was answered."),
}


class BadLine(Exception):
    """The line cannot be carried out. It fails without the others."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Line:
    """The jobs that a line asks for, and how its answer is made from theirs."""

    number: int
    custom_id: str
    jobs: Sequence[JobRequest]
    make_answer: MakeAnswer


def custom_id_of(raw: bytes) -> str | None:
    """The line's `custom_id`, if it can be read."""
    try:
        line = read_json(raw)
    except (ValueError, RecursionError):
        return None
    custom_id = line.get("custom_id") if isinstance(line, dict) else None
    return custom_id if isinstance(custom_id, str) else None


def read_line(number: int, raw: bytes, endpoint: Endpoint, models: ModelTable) -> Line:
    """The line. Raises `BadLine`."""
    try:
        line = read_json(raw)
    except NoText as error:
        raise BadLine("invalid_json_line", f"line {number}: {error.field}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise BadLine("invalid_json_line", f"line {number} is no JSON: {error}") from error
    if not isinstance(line, dict) or not isinstance(line.get("custom_id"), str):
        raise BadLine("missing_required_parameter", f"line {number} has no custom_id, which must be text")
    if line.get("method") != "POST" or line.get("url") != endpoint:
        reason = f"line {number}: method must be POST and url {endpoint}, the batch's own"
        raise BadLine("mismatched_endpoint", reason)
    try:
        jobs, make_answer = _plan(endpoint, line.get("body"), models)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        raise BadLine("invalid_request", f"line {number}: {dotted(first['loc'])}: {first['msg']}") from error
    except Refused as refusal:
        raise BadLine("invalid_request", f"line {number}: {refusal}") from refusal
    return Line(number, line["custom_id"], jobs, make_answer)


def job_id_of(batch_id: str, number: int, choice: int) -> str:
    """The id of a line's job: always the same, so that a line that is submitted again is not carried out again."""
    return uuid.uuid5(uuid.NAMESPACE_URL, f"{batch_id}/{number}/{choice}").hex


def answered(batch_id: str, line: Line, first: AcceptedRequest, answers: Sequence[Answer]) -> bytes:
    """The line's entry in the output file."""
    response = {
        "status_code": 200,
        "request_id": first.request_id,
        "body": line.make_answer(first, answers).model_dump(mode="json"),
    }
    return _entry(batch_id, line.number, line.custom_id, response, None)


def failed(batch_id: str, number: int, custom_id: str | None, error: ApiError) -> bytes:
    """The entry in the error file of a line whose jobs were submitted and failed."""
    status, body = openai_error(error)
    response = {"status_code": status, "request_id": "", "body": body.model_dump(mode="json")}
    return _entry(batch_id, number, custom_id, response, None)


def not_run(batch_id: str, number: int, custom_id: str | None, code: str, message: str) -> bytes:
    """The entry in the error file of a line that was not carried out."""
    return _entry(batch_id, number, custom_id, None, {"code": code, "message": message})


def number_of(entry: bytes) -> int:
    """The number of the line that an entry is about."""
    number: str = json.loads(entry)["id"].rsplit("_", 1)[1]
    return int(number)


def _entry(batch_id: str, number: int, custom_id: str | None, response: object, error: object) -> bytes:
    entry_id = f"batch_req_{batch_id.removeprefix('batch_')}_{number}"
    entry = {"id": entry_id, "custom_id": custom_id, "response": response, "error": error}
    # A line may hold half of a surrogate pair, which UTF-8 cannot encode; escaped with a backslash it is JSON again.
    return json.dumps(entry, ensure_ascii=False, separators=(",", ":")).encode(errors="backslashreplace") + b"\n"


def _plan(endpoint: Endpoint, body: Any, models: ModelTable) -> tuple[list[JobRequest], MakeAnswer]:
    match endpoint:
        case "/v1/chat/completions":
            chat = ChatCompletionRequest.model_validate(body)
            _refuse_stream(chat.stream)
            jobs = chat_jobs(chat, models.policy(chat.model))
            return jobs, lambda first, answers: ChatDialect.of(chat, first).whole(answers)
        case "/v1/completions":
            completion = CompletionRequest.model_validate(body)
            _refuse_stream(completion.stream)
            jobs = completion_jobs(completion, models.policy(completion.model))
            return jobs, lambda first, answers: TextDialect.of(completion, first).whole(answers)
        case "/v1/responses":
            response = ResponseRequest.model_validate(body)
            _refuse_stream(response.stream)
            if response.previous_response_id is not None:
                reason = "a batch's lines continue nothing"
                raise Refused("previous_response_id", response.previous_response_id, reason)
            note = note_of(response)
            jobs = [response_job(response, models.policy(response.model), ())]
            return jobs, lambda first, answers: response_of(first, note, result=answers[0].result)
        case "/v1/jobs":
            return [JobRequest.model_validate(body)], _job


def _job(first: AcceptedRequest, answers: Sequence[Answer]) -> Wire:
    return Job(
        id=first.request_id,
        status="succeeded",
        policy=first.policy.name,
        created_at=first.accepted_at_s,
        result=answers[0].result,
    )


def _refuse_stream(stream: bool | None) -> None:
    if stream:
        raise Refused("stream", stream, "a batch's answers come whole")
