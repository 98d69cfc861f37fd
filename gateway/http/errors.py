"""Errors of the API as data: status, what happened, which field is at fault. Pure.

`gateway.http.error_handlers` has the table that makes an `ApiError` of every exception. There are three forms of it:
a problem document (RFC 9457) on HTTP and in WebSocket messages, OpenAI's error object on OpenAI's routes, and a line
in a batch's error file (`gateway.openai.errors`, `gateway.batches.lines`).
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

#: The longest value that an error repeats; a whole prompt would not help its reader.
MAX_SHOWN = 200


class ApiError(Exception):
    """The request is answered with this error. `code` and `fields` are members of the problem document."""

    def __init__(
        self,
        status: int,
        title: str,
        detail: str,
        *,
        code: str | None = None,
        fields: Sequence[Mapping[str, object]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.title = title
        self.detail = detail
        self.code = code
        #: The fields at fault: see `schemas.problems.FieldProblem`.
        self.fields = fields
        self.headers = dict(headers or {})

    def problem(self) -> dict[str, object]:
        """The problem document: see `schemas.problems.Problem`."""
        document = {"type": "about:blank", "title": self.title, "status": self.status, "detail": self.detail}
        optional = {"code": self.code, "errors": list(self.fields)}
        return document | {name: value for name, value in optional.items() if value}


def invalid_fields(fields: Sequence[Mapping[str, object]]) -> ApiError:
    """422 that names the fields, made by `field_error`."""
    found = [f"{entry['field'] or 'body'}: {entry['reason']} (it is {entry['value']!r})" for entry in fields]
    return ApiError(422, "The request is not valid", "; ".join(found), fields=fields)


def invalid(error: ValidationError) -> ApiError:
    """422 that names every field that pydantic rejected."""
    found = error.errors(include_url=False, include_context=False)
    return invalid_fields([field_error(dotted(entry["loc"]), entry["input"], entry["msg"]) for entry in found])


def field_error(field: str, value: object, reason: str) -> dict[str, object]:
    """One field at fault."""
    return {"field": field, "value": shown(value), "reason": reason}


def dotted(location: tuple[int | str, ...]) -> str:
    """A field's place within the body: `messages.0.role`."""
    return ".".join(str(part) for part in location)


def shown(value: Any) -> Any:
    """The value as an error repeats it: JSON, cut if it is long."""
    try:
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return repr(value)[:MAX_SHOWN]
    except RecursionError:
        return f"a {type(value).__name__} nested too deeply to show"
    return value if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…"
