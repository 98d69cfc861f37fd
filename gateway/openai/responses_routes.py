"""/v1/responses: answers that can be fetched later, cancelled, and streamed from any event on."""

from collections.abc import Iterable, Iterator, Sequence
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
from gateway.http.answers import HEARTBEAT, event_stream, json_answer
from gateway.http.errors import ApiError
from gateway.http.idempotency import REPLAYED, IdempotencyHeader
from gateway.http.openapi import OPENAI, openai_errors
from gateway.http.pagination import page_of
from gateway.jobs.submission import Submitted, submit_all, submitted_before
from gateway.openai.errors import NoAnswer
from gateway.openai.responses import (
    ResponseStream,
    conversation_after,
    input_items,
    job_id_of,
    note_of,
    response_job,
    response_of,
)
from gateway.openai.serving import ChoiceEvent, Jobs, answer_streamed, answer_whole
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


@dataclass(frozen=True)
class StoredResponse:
    """A response that can be fetched."""

    record: Record
    note: ResponseNote

    def response(self) -> ResponseObject:
        """The response as it is now."""
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

    @app.post("/v1/responses", tags=[OPENAI], responses={200: ResponseObject, **openai_errors(404, 410, 422)})
    def respond(header: IdempotencyHeader, body: ResponseRequest) -> Response:
        """Answer; in the background if asked to; as a stream if asked to."""
        note = note_of(body)
        if note.background and not body.stream:
            return _begun(services, note, _submitted(services, body, note, header))
        with services.streams.permit() as permit:
            submitted = _submitted(services, body, note, header)
            if note.background:
                response = event_stream(_stored_lines(services, submitted.requests[0], note, after=-1))
                response.headers.extend(REPLAYED if submitted.replayed else {})
                return permit.release_after(response)
            jobs = Jobs(services, submitted)
            request = jobs.accepted[0]
            if body.stream:
                return answer_streamed(jobs, permit, partial(_lines, request, note))
            return answer_whole(jobs, lambda answers: response_of(request, note, result=answers[0].result))

    _add_stored(app, services)


def _add_stored(app: OpenAPI, services: Services) -> None:
    errors = openai_errors(404)

    @app.get("/v1/responses/<response_id>", tags=[OPENAI], responses={200: ResponseObject, **errors})
    def retrieve_response(path: ResponsePath, query: RetrieveQuery) -> Response:
        """Get a response, or follow it from an event on."""
        found = _find(services, path.response_id)
        if not query.stream:
            return json_answer(found.response())
        with services.streams.permit() as permit:
            lines = _stored_lines(services, found.record.request, found.note, after=query.starting_after)
            return permit.release_after(event_stream(lines))

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
        return json_answer(InputItemList.of(*page_of(items, query.after, query.limit)))


def _submitted(services: Services, body: ResponseRequest, note: ResponseNote, header: IdempotencyHeader) -> Submitted:
    """The response's job, submitted now or by an earlier request with the same key."""
    key = header.of_json()
    # Looked up first: the response that this one continues may have expired since the first time.
    if (earlier := submitted_before(services, key, 1)) is not None:
        return earlier
    job = response_job(body, services.models.policy(body.model), _earlier(services, body.previous_response_id))
    return submit_all(services, [job], note=note.model_dump_json(), key=key)


def _begun(services: Services, note: ResponseNote, submitted: Submitted) -> Response:
    """The response in the background, as it is now."""
    request = submitted.requests[0]
    record = services.store.read(request.request_id) if submitted.replayed else None
    if record is None:
        return json_answer(response_of(request, note, waits=True))
    return json_answer(StoredResponse(record, note).response(), headers=REPLAYED)


def _find(services: Services, response_id: str) -> StoredResponse:
    """The response. Raises 404 where it is not there, or not any more, or was not to be stored."""
    job_id = job_id_of(response_id)
    record = None if job_id is None else services.store.read(job_id)
    if record is not None and record.request.note:
        note = ResponseNote.model_validate_json(record.request.note)
        if note.store:
            return StoredResponse(record, note)
    raise _no_such_response(f"There is no response {response_id!r}, or it has expired.")


def _no_such_response(detail: str) -> ApiError:
    return ApiError(404, "No such response", detail)


def _earlier(services: Services, response_id: str | None) -> Sequence[Message]:
    """The conversation of an earlier response; none for None. Raises 404 for a response without an answer."""
    if response_id is None:
        return ()
    found = _find(services, response_id)
    if found.record.result is None:
        raise _no_such_response(f"The response {response_id!r} has no answer (yet).")
    return conversation_after(found.record.request, found.note, found.record.result)


def _lines(request: AcceptedRequest, note: ResponseNote, events: Iterator[ChoiceEvent]) -> Iterator[str]:
    """The stream of a response that is answered here: to its end, or for `gateway.max_answer_s`."""
    stream = ResponseStream(request, note)
    yield from _server_sent(stream.opening())
    try:
        for choice_event in events:
            yield from [HEARTBEAT] if choice_event is None else _server_sent(stream.events_for(choice_event[1]))
    except NoAnswer as error:
        yield from _server_sent([stream.broken_off(error.code or "server_error", error.detail)])


def _stored_lines(services: Services, request: AcceptedRequest, note: ResponseNote, after: int) -> Iterator[str]:
    """The stream of a stored response, to its end. The response goes on if this stream is cut off."""
    stream = ResponseStream(request, note)
    yield from _server_sent(stream.opening(), after)
    for streamed in services.hub.follow(request.request_id, BEGINNING, deadline=float("inf")):
        yield from [HEARTBEAT] if streamed is None else _server_sent(stream.events_for(streamed.event), after)


def _server_sent(events: Iterable[ResponseEvent], after: int = -1) -> Iterator[str]:
    for event in events:
        if event.sequence_number > after:
            yield f"event: {event.type}\ndata: {event.model_dump_json(include=event.model_fields_set)}\n\n"
