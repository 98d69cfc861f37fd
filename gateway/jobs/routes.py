"""/v1/jobs: submit a prompt, read what became of it, follow its events, cancel it."""

import time
from collections.abc import Iterator
from contextlib import suppress

from flask import Response
from flask_openapi3.openapi import OpenAPI
from pydantic import BaseModel, Field

from broker.event_streams import BEGINNING, StreamedEvent
from broker.leases import Record
from broker.states import FINISHED
from gateway.http.answers import HEARTBEAT, RETRY_AFTER_S, event_stream, json_answer
from gateway.http.client_disconnect import disconnect_check
from gateway.http.idempotency import REPLAYED, IdempotencyHeader
from gateway.http.openapi import JOBS, event_stream_document, problems
from gateway.http.stream_limits import TooManyStreams
from gateway.jobs.answers import job_of, no_such_job
from gateway.jobs.submission import submit_all
from gateway.services import Services
from schemas.events import POSITION
from schemas.jobs import Job
from schemas.requests import AcceptedRequest, JobRequest


class JobPath(BaseModel):
    """The id of a job, in the address."""

    job_id: str = Field(description="The id that POST /v1/jobs answered with.")


class WaitQuery(BaseModel):
    """How long to wait."""

    wait: float = Field(0.0, ge=0.0, description="Seconds to wait for the job to finish; cut to gateway.max_wait_s.")


class ResumeHeader(BaseModel):
    """Where an interrupted event stream goes on."""

    last_event_id: str = Field(
        BEGINNING,
        alias="Last-Event-ID",
        pattern=POSITION,
        description="The id of the last event that arrived; what follows it is sent.",
    )


def add(app: OpenAPI, services: Services) -> None:
    """Add the routes."""
    store = services.store

    @app.post("/v1/jobs", tags=[JOBS], responses={200: Job, 202: Job, **problems(410)})
    def submit(header: IdempotencyHeader, query: WaitQuery, body: JobRequest) -> Response:
        """Submit a prompt. The answer is at the job's own address, and here (200) if it came in time."""
        submitted = submit_all(services, [body], key=header.of_json())
        accepted = submitted.requests[0]
        if query.wait > 0:
            with suppress(TooManyStreams):  # the job is accepted all the same, and its client can wait again
                _wait(services, accepted.request_id, query.wait)
        record = store.read(accepted.request_id) if submitted.replayed or query.wait > 0 else None
        job = job_of(record) if record is not None else _new_job(accepted)
        headers = {"Location": f"/v1/jobs/{accepted.request_id}", **(REPLAYED if submitted.replayed else {})}
        if record is not None and record.state in FINISHED and query.wait > 0:
            return json_answer(job, 200, headers)
        return json_answer(job, 202, headers | {"Retry-After": RETRY_AFTER_S})

    @app.get("/v1/jobs/<job_id>", tags=[JOBS], responses={200: Job, **problems(404, 410)})
    def read(path: JobPath, query: WaitQuery) -> Response:
        """Get the job, at once or when it has finished."""
        record = store.read(path.job_id)
        if record is not None and record.state not in FINISHED and query.wait > 0:
            _wait(services, path.job_id, query.wait)
            record = store.read(path.job_id)
        return _job(services, path.job_id, record)

    @app.delete("/v1/jobs/<job_id>", tags=[JOBS], responses={200: Job, **problems(404, 410)})
    def cancel(path: JobPath) -> Response:
        """Cancel the job. One that has finished stays as it is."""
        store.cancel(path.job_id)
        return _job(services, path.job_id, store.read(path.job_id))

    stream = event_stream_document("The job's events (schemas/events.py).")

    @app.get("/v1/jobs/<job_id>/events", tags=[JOBS], responses={200: stream, 204: None, **problems(404, 410)})
    def events(path: JobPath, header: ResumeHeader) -> Response:
        """Follow the job: server-sent events, its whole history first, resumable by Last-Event-ID."""
        state = store.state(path.job_id)
        if state is None:
            raise no_such_job(store, path.job_id)
        if state in FINISHED and not services.hub.read(path.job_id, header.last_event_id):
            return Response(status=204)  # tells an EventSource not to connect again
        with services.streams.permit() as permit:
            following = services.hub.follow(path.job_id, header.last_event_id, deadline=float("inf"))
            return permit.release_after(event_stream(_server_sent(following)))


def _wait(services: Services, job_id: str, wait_s: float) -> None:
    """Block until the job has finished, the time is up or the client has left. Raises `TooManyStreams`.

    The job of a client that has left goes on: the client has its address, or finds it with its idempotency key.
    """
    with services.streams.permit():
        deadline = time.monotonic() + min(wait_s, services.settings.max_wait_s)
        services.hub.wait_for_end(job_id, deadline, disconnect_check())


def _new_job(accepted: AcceptedRequest) -> Job:
    return Job(
        id=accepted.request_id,
        status="queued" if "edge" in accepted.policy.tiers else "escalated",
        policy=accepted.policy.name,
        created_at=accepted.accepted_at_s,
    )


def _job(services: Services, job_id: str, record: Record | None) -> Response:
    """The job as it is now. Raises 404 or 410 where there is no record."""
    if record is None:
        raise no_such_job(services.store, job_id)
    return json_answer(job_of(record), headers={} if record.state in FINISHED else {"Retry-After": RETRY_AFTER_S})


def _server_sent(following: Iterator[StreamedEvent | None]) -> Iterator[str]:
    """Server-sent events with the stream's positions as ids."""
    for streamed in following:
        if streamed is None:
            yield HEARTBEAT
        else:
            event = streamed.event
            yield f"id: {streamed.position}\nevent: {event.type}\ndata: {event.model_dump_json()}\n\n"
