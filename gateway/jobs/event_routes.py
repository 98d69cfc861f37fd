"""/v1/jobs/{id}/events: a job's event stream, on any gateway process, from any position."""

from flask import Response
from flask_openapi3.openapi import OpenAPI
from pydantic import BaseModel, Field

from broker.event_streams import BEGINNING
from broker.states import FINISHED
from gateway.http.openapi import JOBS, Responses, problems
from gateway.http.openapi import event_stream as event_stream_document
from gateway.jobs.answers import event_stream, no_such_job, server_sent
from gateway.jobs.routes import JobPath
from gateway.services import Services
from schemas.events import POSITION


class ResumeHeader(BaseModel):
    """Where an event stream that was cut off goes on."""

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
            return no_such_job(services.store, path.job_id)
        if state in FINISHED and not services.hub.read(path.job_id, header.last_event_id):
            return Response(status=204)  # what tells an EventSource not to connect again
        with services.slots.taken() as slot:
            following = services.hub.follow(path.job_id, header.last_event_id, deadline=float("inf"))
            return slot.held_by(event_stream(server_sent(following)))
