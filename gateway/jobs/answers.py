"""Answers that several routes give."""

from collections.abc import Iterator, Mapping

from flask import Response, request

from broker.leases import Record
from gateway.http.errors import ApiError
from gateway.jobs.ownership import OwnedRequests
from schemas.jobs import Job
from schemas.wire import Wire

#: Seconds that a client should wait before it asks again, where nothing better is known.
RETRY_AFTER_S = "1"
#: A comment in a stream where nothing happened for a while: only a write notices that the client has left.
HEARTBEAT = ": still here\n\n"


def json_answer(body: Wire, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """The message as JSON."""
    return Response(body.model_dump_json(), status, dict(headers or {}), content_type="application/json")


def job_of(record: Record) -> Job:
    """A request as its owner sees it."""
    return Job(
        id=record.request_id,
        status=record.state,
        policy=record.request.policy.name,
        created_at=record.request.accepted_at_s,
        result=record.result,
        failure=record.failure,
    )


def no_such_job(store: OwnedRequests, job_id: str) -> ApiError:
    """404 for an unknown id; 410 where the job's result has expired."""
    if store.is_gone(job_id):
        return ApiError(
            410, "The result has expired", f"The job {job_id!r} has finished; its result is kept no longer."
        )
    return ApiError(404, "No such job", f"There is no job {job_id!r}.")


def event_stream(lines: Iterator[str]) -> Response:
    """Server-sent events that no proxy may cache or buffer. Only the headers for a HEAD request."""
    response = Response(() if request.method == "HEAD" else lines, content_type="text/event-stream")
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Accel-Buffering"] = "no"
    return response
