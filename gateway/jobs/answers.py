"""Answers that several routes give."""

from collections.abc import Iterator, Mapping

from flask import Response, request

from broker.event_streams import StreamedEvent
from broker.request_store import RequestStore
from gateway.http.problems import problem
from schemas.wire import Wire

#: Seconds that a client should wait before it asks again, where nothing better is known.
RETRY_AFTER_S = "1"


def json_answer(body: Wire, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """The message as JSON."""
    return Response(body.model_dump_json(), status, dict(headers or {}), content_type="application/json")


def no_such_job(store: RequestStore, job_id: str) -> Response:
    """404 for an id that means nothing; 410 for one whose result has expired."""
    if store.is_gone(job_id):
        return problem(410, "The result has expired", f"The job {job_id!r} has finished; its result is kept no longer.")
    return problem(404, "No such job", f"There is no job {job_id!r}.")


def event_stream(lines: Iterator[str]) -> Response:
    """Server-sent events, which nothing on the way may keep or gather. Of a HEAD request only the headers."""
    response = Response(() if request.method == "HEAD" else lines, content_type="text/event-stream")
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Accel-Buffering"] = "no"
    return response


def server_sent(following: Iterator[StreamedEvent | None]) -> Iterator[str]:
    """A request's events as server-sent events, with their positions as ids."""
    for streamed in following:
        if streamed is None:
            yield ": still here\n\n"  # the write that notices a client that has left
        else:
            event = streamed.event
            yield f"id: {streamed.position}\nevent: {event.type}\ndata: {event.model_dump_json()}\n\n"
