"""/v1/responses: answers that can be fetched later, cancelled, and followed from any event on."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from flask import Response
from flask_openapi3.openapi import OpenAPI
from pydantic import BaseModel, Field

from broker import states
from broker.event_streams import BEGINNING
from broker.leases import Record
from broker.states import State
from gateway.http.idempotency import REPLAYED, IdempotencyHeader
from gateway.http.openapi import OPENAI, openai_errors
from gateway.http.pagination import page_of
from gateway.http.problems import problem
from gateway.jobs.answers import event_stream, json_answer
from gateway.jobs.submission import Submitted, submit_all, submitted_before
from gateway.openai.models import ModelTable
from gateway.openai.responses import (
    ResponseStory,
    continued,
    input_items,
    job_id_of,
    note_of,
    response_job,
    response_of,
)
from gateway.openai.serving import HEARTBEAT, Jobs, NoAnswer, Told, answer_streamed
from gateway.services import Services
from schemas.openai_responses import InputItemList, ResponseDeleted, ResponseEvent, ResponseNote, ResponseRequest
from schemas.openai_responses import Response as ResponseObject
from schemas.requests import AcceptedRequest, Message


class ResponsePath(BaseModel):
    """Which response."""

    response_id: str = Field(description="The id that POST /v1/responses answered with.")


class RetrieveQuery(BaseModel):
    """How to fetch it."""

    stream: bool = Field(False, description="As server-sent events, the past ones first.")
    starting_after: int = Field(-1, description="Of a stream, only the events with a higher sequence_number.")


class ItemsQuery(BaseModel):
    """Which page of the input, and from which end."""

    after: str | None = Field(None, description="The last id of the page before.")
    limit: int = Field(20, ge=1, le=100)
    order: Literal["asc", "desc"] = "desc"


class NoSuchResponse(Exception):
    """No response has this id, or not any more, or it was not to be stored."""


@dataclass(frozen=True)
class Found:
    """A stored response."""

    record: Record
    note: ResponseNote

    def response(self) -> ResponseObject:
        """As it is now."""
        record = self.record
        return response_of(
            record.request,
            self.note,
            waits=record.state in states.WAITING.values(),
            cancelled=record.state == State.CANCELLED,
            result=record.result,
            failure=record.failure,
        )


def add(app: OpenAPI, services: Services) -> None:
    """Add the routes."""
    models = ModelTable(services.admission.policies, services.settings.model_aliases)

    @app.errorhandler(NoSuchResponse)
    def on_no_such_response(error: NoSuchResponse) -> Response:
        return problem(404, "No such response", str(error))

    @app.post("/v1/responses", tags=[OPENAI], responses={200: ResponseObject, **openai_errors(404, 410, 422)})
    def respond(header: IdempotencyHeader, body: ResponseRequest) -> Response:
        """Answer; in the background if asked to; as a stream if asked to."""
        note, key = note_of(body), header.of_json()

        def submitted() -> Submitted:
            # The response that it continues may have expired since it was first asked for.
            if (before := submitted_before(services, key, 1)) is not None:
                return before
            job = response_job(body, models.policy(body.model), _earlier(services, body.previous_response_id))
            return submit_all(services, [job], note=note.model_dump_json(), key=key)

        if note.background and not body.stream:
            now = submitted()
            record = services.store.read(now.requests[0].request_id) if now.replayed else None
            if record is not None:
                return json_answer(Found(record, note).response(), headers=REPLAYED)
            return json_answer(response_of(now.requests[0], note, waits=True))
        if body.stream and note.background:
            with services.slots.taken() as slot:
                now = submitted()
                response = event_stream(_lines(services, now.requests[0], note, after=-1))
                response.headers.extend(REPLAYED if now.replayed else {})
                return slot.held_by(response)
        if body.stream:
            return answer_streamed(services, submitted, partial(_told, note))
        with services.slots.taken():
            jobs = Jobs(services, submitted())
            try:
                (answer,) = jobs.answers()
            except NoAnswer as reason:
                return json_answer(reason.error, reason.status, jobs.headers)
            finally:
                jobs.cancel()
        return json_answer(response_of(jobs.accepted[0], note, waits=False, result=answer.result), headers=jobs.headers)

    _add_stored(app, services)


def _add_stored(app: OpenAPI, services: Services) -> None:
    errors = openai_errors(404)

    @app.get("/v1/responses/<response_id>", tags=[OPENAI], responses={200: ResponseObject, **errors})
    def retrieve_response(path: ResponsePath, query: RetrieveQuery) -> Response:
        """Get a response, or follow it from an event on."""
        found = _find(services, path.response_id)
        if not query.stream:
            return json_answer(found.response())
        with services.slots.taken() as slot:
            lines = _lines(services, found.record.request, found.note, after=query.starting_after)
            return slot.held_by(event_stream(lines))

    @app.post("/v1/responses/<response_id>/cancel", tags=[OPENAI], responses={200: ResponseObject, **errors})
    def cancel_response(path: ResponsePath) -> Response:
        """Cancel a response. One that has finished stays as it is."""
        services.store.cancel(_find(services, path.response_id).record.request_id)
        return json_answer(_find(services, path.response_id).response())

    @app.delete("/v1/responses/<response_id>", tags=[OPENAI], responses={200: ResponseDeleted, **errors})
    def delete_response(path: ResponsePath) -> Response:
        """Forget a response, and cancel one that has not finished."""
        services.store.delete(_find(services, path.response_id).record.request_id)
        return json_answer(ResponseDeleted(id=path.response_id))

    @app.get("/v1/responses/<response_id>/input_items", tags=[OPENAI], responses={200: InputItemList, **errors})
    def list_input_items(path: ResponsePath, query: ItemsQuery) -> Response:
        """The turns that a response answers, the last first unless `order` is `asc`."""
        found = _find(services, path.response_id)
        items = input_items(found.record.request, found.note)[:: 1 if query.order == "asc" else -1]
        page = page_of(items, query.after, query.limit)
        return json_answer(
            InputItemList(data=page.data, first_id=page.first_id, last_id=page.last_id, has_more=page.has_more)
        )


def _find(services: Services, response_id: str) -> Found:
    job_id = job_id_of(response_id)
    record = None if job_id is None else services.store.read(job_id)
    if record is not None and record.request.note:
        note = ResponseNote.model_validate_json(record.request.note)
        if note.store:
            return Found(record, note)
    raise NoSuchResponse(f"There is no response {response_id!r}, or it has expired.")


def _earlier(services: Services, response_id: str | None) -> Sequence[Message]:
    """The conversation of an earlier response that has an answer; none for None. Raises `NoSuchResponse`."""
    if response_id is None:
        return ()
    found = _find(services, response_id)
    if found.record.result is None:
        raise NoSuchResponse(f"The response {response_id!r} has no answer (yet).")
    return continued(found.record.request, found.note, found.record.result)


def _told(note: ResponseNote, jobs: Jobs, events: Iterator[Told]) -> Iterator[str]:
    """The stream of a response that ends with it, or after `gateway.max_answer_s`."""
    story = ResponseStory(jobs.accepted[0], note)
    yield from _said(story.opening())
    try:
        for told in events:
            if told is None:
                yield HEARTBEAT
            else:
                yield from _said(story.tell(told[1]))
    except NoAnswer as reason:
        yield from _said(iter([story.broken_off(reason.error.error.code or "server_error", str(reason))]))


def _lines(services: Services, request: AcceptedRequest, note: ResponseNote, after: int) -> Iterator[str]:
    """The stream of a stored response, or of one in the background, which goes on without it: to its end."""
    story = ResponseStory(request, note)
    yield from _said(story.opening(), after)
    for streamed in services.hub.follow(request.request_id, BEGINNING, deadline=float("inf")):
        if streamed is None:
            yield HEARTBEAT
        else:
            yield from _said(story.tell(streamed.event), after)


def _said(events: Iterator[ResponseEvent], after: int = -1) -> Iterator[str]:
    for event in events:
        if event.sequence_number > after:
            yield f"event: {event.type}\ndata: {event.model_dump_json(include=event.model_fields_set)}\n\n"
