"""Answers that all rooms give: JSON and event streams."""

from collections.abc import Iterator, Mapping

from flask import Response, request

from schemas.wire import Wire

#: Seconds that a client should wait before it asks again, where nothing better is known.
RETRY_AFTER_S = "1"
#: A comment in a stream where nothing happened for a while: only a write notices that the client has left.
HEARTBEAT = ": still here\n\n"


def json_answer(body: Wire, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """The message as JSON."""
    return Response(body.model_dump_json(), status, dict(headers or {}), content_type="application/json")


def event_stream(lines: Iterator[str]) -> Response:
    """Server-sent events that no proxy may cache or buffer. Only the headers for a HEAD request."""
    response = Response(() if request.method == "HEAD" else lines, content_type="text/event-stream")
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Accel-Buffering"] = "no"
    return response
