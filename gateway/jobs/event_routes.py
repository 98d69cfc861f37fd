"""/v1/jobs/{id}/events: a job's event stream, on any gateway process, from any position."""

from collections.abc import Iterator

from flask import Response
from flask_openapi3.openapi import OpenAPI
from pydantic import BaseModel, Field

from broker.event_streams import BEGINNING, StreamedEvent
from broker.states import FINISHED
from gateway.http.openapi import JOBS, Responses, problems
from gateway.http.openapi import event_stream as event_stream_document
from gateway.jobs.answers import HEARTBEAT, event_stream, no_such_job
from gateway.jobs.routes import JobPath
from gateway.services import Services
from schemas.events import POSITION


class ResumeHeader(BaseModel):
    """Where an interrupted event stream goes on."""

    last_event_id: str = Field(
        BEGINNING,
        alias="Last-Event-ID",
        pattern=POSITION,
        description="The id of the last event that arrived; what follows it is sent.",
    )


def add(app: OpenAPI, services: Services) -> None:
    """Add the route."""
    described: Responses = {
        200: event_stream_document("The job's events (schemas/events.py)."),
        204: None,
        **problems(404, 410),
    }

    @app.get("/v1/jobs/<job_id>/events", tags=[JOBS], responses=described)
    def events(path: JobPath, header: ResumeHeader) -> Response:
        """Follow the job: server-sent events, its whole history first, resumable by Last-Event-ID."""
        state = services.store.state(path.job_id)
        if state is None:
            raise no_such_job(services.store, path.job_id)
        if state in FINISHED and not services.hub.read(path.job_id, header.last_event_id):
            return Response(status=204)  # tells an EventSource not to connect again
        with services.streams.permit() as permit:
            following = services.hub.follow(path.job_id, header.last_event_id, deadline=float("inf"))
            return permit.release_after(event_stream(_server_sent(following)))


def _server_sent(following: Iterator[StreamedEvent | None]) -> Iterator[str]:
    """Server-sent events with the stream's positions as ids."""
    for streamed in following:
        if streamed is None:
            yield HEARTBEAT
        else:
            event = streamed.event
            yield f"id: {streamed.position}\nevent: {event.type}\ndata: {event.model_dump_json()}\n\n"
