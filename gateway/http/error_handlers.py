"""What a client is told when the gateway will not or cannot: one answer for each of our exceptions."""

import logging
from collections.abc import Callable

from flask import Response
from gunicorn.http.errors import ParseException
from werkzeug.exceptions import ClientDisconnected

from broker.batches import TooManyBatches
from broker.connection import REDIS_AWAY, NoFreeConnection
from broker.idempotency import IdempotencyConflict
from broker.request_store import NotOnDisk
from gateway.batches.files import QuotaExceeded
from gateway.http.authentication import Forbidden, Unauthorised
from gateway.http.client_disconnect import ClientLeft
from gateway.http.problems import CONFLICTING_KEY, problem, refused, shown
from gateway.http.stream_limits import TooManyStreams
from gateway.jobs.answers import RETRY_AFTER_S
from gateway.jobs.request_validation import Refused
from gateway.jobs.submission import Overloaded, ResultExpired
from gateway.openai.models import UnknownModel
from schemas.wire import UndecodableMessage

log = logging.getLogger(__name__)

#: Seconds after which a batch of an owner's may have ended.
BATCHES_RETRY_AFTER_S = "60"


def _unknown_model(error: UnknownModel) -> Response:
    found = {"field": error.field, "value": shown(error.value), "reason": error.reason}
    detail = f"There is no model {shown(error.value)!r}: {error.reason}."
    return problem(404, "No such model", detail, code="model_not_found", errors=[found])


def _body_breaks_off(_error: ClientDisconnected) -> Response:
    return problem(408, "The body did not come", "It ended before its end, or nothing of it came for too long.")


def _malformed_body(error: ParseException) -> Response:
    return problem(400, "The body is malformed", str(error))


def _unauthorised(_error: Unauthorised) -> Response:
    detail = "Give a key that is known: Authorization: Bearer fd_..."
    return problem(401, "An API key is needed", detail, headers={"WWW-Authenticate": "Bearer"})


def _forbidden(error: Forbidden) -> Response:
    return problem(403, "The API key is not good for this", str(error))


def _idempotency_conflict(_error: IdempotencyConflict) -> Response:
    detail = "Nothing was stored. Within 24 hours a key is good for one body on one route; choose another key."
    return problem(422, "The Idempotency-Key stands for another body", detail, code=CONFLICTING_KEY)


def _result_expired(error: ResultExpired) -> Response:
    return problem(410, "The result has expired", str(error))


def _overloaded(error: Overloaded) -> Response:
    status = 429 if error.overload.is_owners else 503
    headers = {"Retry-After": str(error.overload.retry_after_s)}
    return problem(status, "Too much is unfinished", str(error), headers=headers)


def _quota_exceeded(error: QuotaExceeded) -> Response:
    return problem(413, "You keep too many files", str(error))


def _too_many_batches(error: TooManyBatches) -> Response:
    return problem(429, "Too many batches", str(error), headers={"Retry-After": BATCHES_RETRY_AFTER_S})


def _nested_too_deeply(_error: RecursionError) -> Response:
    return problem(400, "The body is nested too deeply", "Nothing was stored.")


def _client_left(_error: ClientLeft) -> Response:
    detail = "Nobody waits for the answer any more; its jobs were cancelled, unless they came with an Idempotency-Key."
    return problem(499, "The client has left", detail)


def _too_many_streams(error: TooManyStreams) -> Response:
    return problem(503, "Too many streams", str(error), headers={"Retry-After": RETRY_AFTER_S})


def _redis_away(error: Exception) -> Response:
    log.warning("redis_away error=%s", error)
    # Where the connection broke before the answer came, nobody can know.
    detail = "Try again. Without an Idempotency-Key, what was stored all the same would then be done twice."
    return problem(503, "Redis is away", detail, headers={"Retry-After": RETRY_AFTER_S})


def _busy(error: NoFreeConnection) -> Response:
    log.error("connections_used_up error=%s", error)
    detail = "Every connection of this gateway to Redis was in use for too long; try again."
    return problem(503, "The gateway is busy", detail, headers={"Retry-After": RETRY_AFTER_S})


def _not_on_disk(error: NotOnDisk) -> Response:
    log.warning("not_on_disk error=%s", error)
    detail = "Nothing was accepted; try again."
    return problem(503, "The disk did not answer in time", detail, headers={"Retry-After": RETRY_AFTER_S})


def _unreadable(error: UndecodableMessage) -> Response:
    log.error("stored_unreadable error=%s", error)
    return problem(500, "What is stored cannot be read", f"Another version of this software wrote it, or none: {error}")


def answer_to(error: Exception) -> Response:
    """The answer to one of `ANSWERS`' exceptions, or of their subclasses."""
    return next(ANSWERS[kind] for kind in type(error).__mro__ if kind in ANSWERS)(error)


#: The answer to each exception.
ANSWERS: dict[type[Exception], Callable[..., Response]] = {
    Refused: refused,
    UnknownModel: _unknown_model,
    ClientDisconnected: _body_breaks_off,
    ParseException: _malformed_body,
    Unauthorised: _unauthorised,
    Forbidden: _forbidden,
    IdempotencyConflict: _idempotency_conflict,
    ResultExpired: _result_expired,
    Overloaded: _overloaded,
    QuotaExceeded: _quota_exceeded,
    TooManyBatches: _too_many_batches,
    RecursionError: _nested_too_deeply,
    ClientLeft: _client_left,
    TooManyStreams: _too_many_streams,
    NoFreeConnection: _busy,
    NotOnDisk: _not_on_disk,
    UndecodableMessage: _unreadable,
    **dict.fromkeys(REDIS_AWAY, _redis_away),
}
