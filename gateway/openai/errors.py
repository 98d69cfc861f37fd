"""Errors as OpenAI's clients read them, and the ways in which a job ends without an answer. Pure."""

from collections.abc import Mapping

from gateway.http.errors import ApiError
from schemas.events import Cancelled, Event, Failed
from schemas.openai_models import OpenAIError, OpenAIErrorBody
from schemas.results import FailureKind

#: Prefixes of the paths below /v1 that are Firstdraft's own.
OWN_PREFIXES = ("/v1/jobs", "/v1/ws", "/v1/stats", "/v1/cache")

#: OpenAI's type of error by status; `server_error` for all others.
TYPES = {
    **dict.fromkeys((400, 405, 413, 415, 422), "invalid_request_error"),
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    410: "not_found_error",
    429: "rate_limit_error",
}
#: OpenAI's code by status, for errors that have none of their own.
CODES = {401: "invalid_api_key", 429: "rate_limit_exceeded"}
#: Failures that are the request's own fault, with OpenAI's code for them.
CLIENT_FAILURES = {
    FailureKind.PROMPT_TOO_LONG: "context_length_exceeded",
    FailureKind.UNSUPPORTED_OPTION: "unsupported_parameter",
}


class NoAnswer(ApiError):
    """One of the request's jobs has ended, or the time is over, without an answer."""

    def __init__(self, status: int, detail: str, code: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, "There is no answer", detail, code=code, headers=headers)


def is_openai_path(path: str) -> bool:
    """Whether OpenAI's clients ask for the path: its routes, and those that OpenAI has and Firstdraft has not."""
    return path.startswith("/v1/") and not path.startswith(OWN_PREFIXES)


def openai_error(error: ApiError) -> tuple[int, OpenAIError]:
    """Status and body. A request that is not valid is 400 with OpenAI, not 422."""
    status = 400 if error.status == 422 and error.code is None else error.status
    field = error.fields[0]["field"] if error.fields else None
    body = OpenAIErrorBody(
        message=error.detail,
        type=TYPES.get(status, "server_error"),
        param=str(field) if field else None,
        code=error.code or CODES.get(status),
    )
    return status, OpenAIError(error=body)


def no_answer(event: Event, headers: Mapping[str, str] | None = None) -> NoAnswer | None:
    """The error for a job's event that says that there will be no answer; None for any other event."""
    match event:
        case Failed(failure=failure):
            code = CLIENT_FAILURES.get(failure.kind)
            return NoAnswer(400 if code else 500, failure.message, code or failure.kind.value, headers)
        case Cancelled():
            return NoAnswer(409, "The request was cancelled.", "cancelled", headers)
    return None


def timed_out(seconds: float, *, goes_on: bool, headers: Mapping[str, str]) -> NoAnswer:
    """The error for an answer that took too long; `goes_on`: the request was not cancelled then."""
    fate = "goes on: send it again with the same Idempotency-Key" if goes_on else "was cancelled"
    return NoAnswer(504, f"There was no answer within {seconds:g} s, and the request {fate}.", "timeout", headers)


def stream_broken_off(reason: str) -> NoAnswer:
    """The error for a stream that cannot go on."""
    return NoAnswer(500, reason, "stream_broken_off")
