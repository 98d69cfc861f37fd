"""Which exception is answered how: the one table, for HTTP, the WebSocket and batches alike."""

import json
import logging
from collections.abc import Callable
from typing import Any, NoReturn

from flask import Flask, Response, has_request_context, request
from gunicorn.http.errors import ParseException
from pydantic import ValidationError
from werkzeug.exceptions import ClientDisconnected, HTTPException
from werkzeug.routing.exceptions import WebsocketMismatch

from broker.batches import TooManyBatches
from broker.connection import REDIS_AWAY, NoFreeConnection
from broker.idempotency import IdempotencyConflict
from broker.request_store import NotOnDisk
from gateway.batches.files import QuotaExceeded
from gateway.http.answers import RETRY_AFTER_S
from gateway.http.authentication import Forbidden, Unauthorised
from gateway.http.client_disconnect import ClientLeft
from gateway.http.errors import MAX_SHOWN, ApiError, field_error, invalid, invalid_fields, shown
from gateway.http.stream_limits import TooManyStreams
from gateway.jobs.request_validation import Refused
from gateway.jobs.submission import Overloaded, ResultExpired
from gateway.openai.errors import is_openai_path, openai_error
from gateway.openai.models import UnknownModel
from schemas.plain import NoText
from schemas.wire import UndecodableMessage

log = logging.getLogger(__name__)

#: Seconds after which one of an owner's batches may have ended.
BATCHES_RETRY_AFTER_S = "60"


def _unavailable(title: str, detail: str) -> ApiError:
    return ApiError(503, title, detail, headers={"Retry-After": RETRY_AFTER_S})


def _no_text(error: NoText) -> ApiError:
    """The value is shown with its surrogates escaped, as it came."""
    found = {"field": error.field, "value": ascii(error.value)[1:-1][:MAX_SHOWN], "reason": str(error)}
    return ApiError(400, "The body is not text", f"{error.field or 'body'}: {error}", fields=[found])


def _unknown_model(error: UnknownModel) -> ApiError:
    detail = f"There is no model {shown(error.value)!r}: {error.reason}."
    fields = [field_error(error.field, error.value, error.reason)]
    return ApiError(404, "No such model", detail, code="model_not_found", fields=fields)


def _overloaded(error: Overloaded) -> ApiError:
    headers = {"Retry-After": str(error.overload.retry_after_s)}
    return ApiError(429 if error.overload.is_owners else 503, "Too much is unfinished", str(error), headers=headers)


def _http_error(error: HTTPException) -> ApiError:
    headers = {name: value for name, value in error.get_headers() if name.lower() != "content-type"}  # Allow
    return ApiError(error.code or 500, error.name, error.description or error.name, headers=headers)


#: How each exception is answered. A subclass without a row of its own is answered as its base class is.
ANSWERS: dict[type[Exception], Callable[[Any], ApiError]] = {
    ApiError: lambda error: error,
    HTTPException: _http_error,
    # What the client sent.
    NoText: _no_text,
    ParseException: lambda error: ApiError(400, "The body is malformed", str(error)),
    RecursionError: lambda _: ApiError(400, "The body is nested too deeply", "Nothing was stored."),
    ClientDisconnected: lambda _: ApiError(
        408, "The body did not come", "It ended before its end, or nothing of it came for too long."
    ),
    WebsocketMismatch: lambda _: ApiError(
        426,
        "Upgrade required",
        "/v1/ws speaks WebSocket, and nothing else does.",
        headers={"Upgrade": "websocket", "Connection": "Upgrade"},
    ),
    Refused: lambda error: invalid_fields([field_error(error.field, error.value, error.reason)]),
    UnknownModel: _unknown_model,
    IdempotencyConflict: lambda _: ApiError(
        422,
        "The Idempotency-Key stands for another body",
        "Nothing was stored. Within 24 hours a key is good for one body on one route; choose another key.",
        code="idempotency_key_in_use",
    ),
    ResultExpired: lambda error: ApiError(410, "The result has expired", str(error)),
    # Who sent it, and how much they have already.
    Unauthorised: lambda _: ApiError(
        401,
        "An API key is needed",
        "Give a key that is known: Authorization: Bearer fd_...",
        headers={"WWW-Authenticate": "Bearer"},
    ),
    Forbidden: lambda error: ApiError(403, "The API key is not good for this", str(error)),
    QuotaExceeded: lambda error: ApiError(413, "You keep too many files", str(error)),
    TooManyBatches: lambda error: ApiError(
        429, "Too many batches", str(error), headers={"Retry-After": BATCHES_RETRY_AFTER_S}
    ),
    Overloaded: _overloaded,
    ClientLeft: lambda _: ApiError(
        499,
        "The client has left",
        "Nobody waits for the answer any more; its jobs were cancelled, unless they came with an Idempotency-Key.",
    ),
    # What this system cannot do now.
    TooManyStreams: lambda error: _unavailable("Too many streams", str(error)),
    NoFreeConnection: lambda _: _unavailable(
        "The gateway is busy", "Every connection of this gateway to Redis was in use for too long; try again."
    ),
    NotOnDisk: lambda _: _unavailable("The disk did not answer in time", "Nothing was accepted; try again."),
    UndecodableMessage: lambda error: ApiError(
        500, "What is stored cannot be read", f"Another version of this software wrote it, or none: {error}"
    ),
    **dict.fromkeys(
        REDIS_AWAY,
        lambda _: _unavailable(
            "Redis is away",
            # If the connection broke before Redis answered, nobody can know whether it stored the request.
            "Try again. Without an Idempotency-Key, what was stored all the same would then be done twice.",
        ),
    ),
}
#: What an operator should read of, by exception.
LOGGED: dict[type[Exception], tuple[int, str]] = {
    NoFreeConnection: (logging.ERROR, "connections_used_up"),
    NotOnDisk: (logging.WARNING, "not_on_disk"),
    UndecodableMessage: (logging.ERROR, "stored_unreadable"),
    **dict.fromkeys(REDIS_AWAY, (logging.WARNING, "redis_away")),
}


def api_error(error: Exception) -> ApiError:
    """How one of `ANSWERS`' exceptions is answered; an operator's concern is logged."""
    kind = next(kind for kind in type(error).__mro__ if kind in ANSWERS)
    if kind in LOGGED:
        level, event = LOGGED[kind]
        log.log(level, "%s error=%s", event, error)
    return ANSWERS[kind](error)


def add_error_handlers(app: Flask) -> None:
    """Have every exception answered by the table; one that has no row is a 500, as a werkzeug exception."""
    for kind in ANSWERS:
        app.register_error_handler(kind, lambda error: _respond(api_error(error)))


def reject_invalid(error: ValidationError) -> NoReturn:
    """Called by flask-openapi3 where a path, query, header or body is not valid."""
    raise invalid(error)


def _respond(error: ApiError) -> Response:
    """The answer to the current request, in the form that its route's clients read."""
    if has_request_context() and is_openai_path(request.path):
        status, body = openai_error(error)
        return Response(body.model_dump_json(), status, error.headers, content_type="application/json")
    document = json.dumps(error.problem())
    return Response(document, error.status, error.headers, content_type="application/problem+json")
