"""Errors as RFC 9457 problem documents that name the field and the value."""

import json
from collections.abc import Mapping
from typing import Any

from flask import Response
from pydantic import ValidationError

from gateway.jobs.request_validation import Refused
from schemas.plain import NoText

#: The longest value that an error repeats; a prompt would not help its reader.
MAX_SHOWN = 200
#: The `code` of the problem that an Idempotency-Key came again with another body.
CONFLICTING_KEY = "idempotency_key_in_use"


def problem(
    status: int, title: str, detail: str, *, headers: Mapping[str, str] | None = None, **members: object
) -> Response:
    """A problem document. `members` are extension members of it."""
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail, **members}
    return Response(
        json.dumps(body), status=status, content_type="application/problem+json", headers=dict(headers or {})
    )


def invalid(error: ValidationError) -> Response:
    """What pydantic found, field by field."""
    found = [
        {"field": _field(entry["loc"]), "value": shown(entry["input"]), "reason": entry["msg"]}
        for entry in error.errors(include_url=False, include_context=False)
    ]
    return _refusal(found)


def refused(refusal: Refused) -> Response:
    """What admission found."""
    return _refusal([{"field": refusal.field, "value": shown(refusal.value), "reason": refusal.reason}])


def no_text(error: NoText) -> Response:
    """A string of the body that no encoding can write, escaped as it came."""
    found = {"field": error.field, "value": ascii(error.value)[1:-1][:MAX_SHOWN], "reason": str(error)}
    return problem(400, "The body is not text", f"{error.field or 'body'}: {error}", errors=[found])


def shown(value: object) -> object:
    """The value as an error repeats it: JSON, and cut where it is long."""
    try:
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return repr(value)[:MAX_SHOWN]
    except RecursionError:
        return f"a {type(value).__name__} nested too deeply to show"
    return value if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…"


def _refusal(found: list[dict[str, Any]]) -> Response:
    detail = "; ".join(f"{entry['field'] or 'body'}: {entry['reason']} (it is {entry['value']!r})" for entry in found)
    return problem(422, "The request is not valid", detail, errors=found)


def _field(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location)
