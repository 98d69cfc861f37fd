"""Errors in OpenAI's form. Pure: a problem document in, an error out."""

from collections.abc import Mapping
from typing import Any

from schemas.openai_models import OpenAIError, OpenAIErrorBody
from schemas.results import Failure, FailureKind

#: What begins the paths below /v1 that are no routes of OpenAI's, here or elsewhere.
OWN_PREFIXES = ("/v1/jobs", "/v1/ws", "/v1/stats", "/v1/cache")

#: OpenAI's type of error by status; 500 for all others.
TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    409: "conflict_error",
    410: "not_found_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    503: "server_error",
    504: "server_error",
}
#: OpenAI's code where it has one.
CODES = {401: "invalid_api_key", 429: "rate_limit_exceeded"}
#: Failures that are the request's own fault, with OpenAI's code for them.
CLIENT_FAILURES = {
    FailureKind.PROMPT_TOO_LONG: "context_length_exceeded",
    FailureKind.UNSUPPORTED_OPTION: "unsupported_parameter",
}


def is_openais(path: str) -> bool:
    """Whether clients of OpenAI's API ask for the path: its routes, and those of it that are not here."""
    return path.startswith("/v1/") and not path.startswith(OWN_PREFIXES)


def from_problem(problem: Mapping[str, Any]) -> tuple[int, OpenAIError]:
    """The status and the error for a problem document. A body that is not valid is 400 with OpenAI, not 422."""
    code = problem.get("code")
    status = 400 if problem["status"] == 422 and code is None else problem["status"]
    fields = problem.get("errors") or [{}]
    field = fields[0].get("field")
    return status, _error(problem["detail"], status, param=field or None, code=code)


def from_failure(failure: Failure) -> tuple[int, OpenAIError]:
    """The status and the error for a job that failed."""
    status = 400 if failure.kind in CLIENT_FAILURES else 500
    return status, _error(failure.message, status, code=CLIENT_FAILURES.get(failure.kind, failure.kind.value))


def not_in_time(seconds: float, *, goes_on: bool) -> tuple[int, OpenAIError]:
    """The status and the error for an answer that took too long, of a request that was cancelled or goes on."""
    fate = "goes on: send it again with the same Idempotency-Key" if goes_on else "was cancelled"
    return 504, _error(f"There was no answer within {seconds:g} s, and the request {fate}.", 504, code="timeout")


def cancelled() -> tuple[int, OpenAIError]:
    """The status and the error for a job that somebody cancelled."""
    return 409, _error("The request was cancelled.", 409, code="cancelled")


def broken_off(reason: str) -> tuple[int, OpenAIError]:
    """The status and the error for a stream that cannot go on."""
    return 500, _error(reason, 500, code="stream_broken_off")


def _error(message: str, status: int, *, param: str | None = None, code: str | None = None) -> OpenAIError:
    kind = TYPES.get(status, "server_error")
    return OpenAIError(error=OpenAIErrorBody(message=message, type=kind, param=param, code=code or CODES.get(status)))
