"""Carries OpenAI-style requests out: waits for their jobs or streams them, cancels what nobody waits for any more."""

import time
from collections.abc import Callable, Iterator
from itertools import chain

from flask import Response

from broker.event_streams import BEGINNING
from gateway.http.answers import HEARTBEAT, event_stream, json_answer
from gateway.http.client_disconnect import ClientLeft, disconnect_check
from gateway.http.idempotency import REPLAYED
from gateway.http.stream_limits import StreamPermit
from gateway.jobs.submission import Submitted
from gateway.openai.errors import NoAnswer, no_answer, openai_error, stream_broken_off, timed_out
from gateway.openai.shapes import Answer, Dialect
from gateway.openai.stable_text import Diverged, StableText
from gateway.services import Services
from schemas.events import FINAL_KINDS, Done, Event, Queued, Started
from schemas.openai_chat import CompletionOptions
from schemas.wire import Wire

#: The end of an OpenAI-style stream.
DONE_LINE = "data: [DONE]\n\n"
#: Seconds between checks whether the client is still connected.
CLIENT_CHECK_S = 2.0

#: An event of one choice, with the choice's index; None where nothing happened for a while.
ChoiceEvent = tuple[int, Event] | None


class Jobs:
    """The submitted jobs of one HTTP request, one for each choice."""

    def __init__(self, services: Services, submitted: Submitted) -> None:
        self._services = services
        self._client_has_left = disconnect_check()
        self.accepted = submitted.requests
        #: Headers that say whether an earlier HTTP request submitted the jobs.
        self.headers = REPLAYED if submitted.replayed else {}
        self._keyed = submitted.keyed
        self._ended: set[str] = set()

    def cancel(self) -> None:
        """Cancel the unfinished jobs, since nobody waits for them any more.

        Jobs with an `Idempotency-Key` go on: the client may send the request again, and others may follow them now.
        """
        if self._keyed:
            return
        for request in self.accepted:
            if request.request_id not in self._ended:
                self._services.store.cancel(request.request_id)

    def events(self) -> Iterator[ChoiceEvent]:
        """The events of all choices, from the beginning.

        Raises `NoAnswer` where it takes longer than `gateway.max_answer_s`, and `ClientLeft`.
        """
        limit_s = self._services.settings.max_answer_s
        indices = {request.request_id: index for index, request in enumerate(self.accepted)}
        positions = dict.fromkeys(indices, BEGINNING)
        checked_at = time.monotonic()
        for event_of_job in self._services.hub.follow_all(positions, time.monotonic() + limit_s):
            if event_of_job is None or time.monotonic() - checked_at > CLIENT_CHECK_S:
                checked_at = time.monotonic()
                if self._client_has_left():
                    raise ClientLeft
            if event_of_job is None:
                yield None
                continue
            request_id, streamed = event_of_job
            if streamed.event.type in FINAL_KINDS:
                self._ended.add(request_id)
            yield indices[request_id], streamed.event
        if len(self._ended) < len(self.accepted):
            raise timed_out(limit_s, goes_on=self._keyed, headers=self.headers)

    def checked(self, event: Event) -> Event:
        """The same event. Raises `NoAnswer` where it says that a choice will have none."""
        if (error := no_answer(event, self.headers)) is not None:
            raise error
        return event

    def first_events(self, events: Iterator[ChoiceEvent]) -> list[ChoiceEvent]:
        """The events up to those which show, for every prompt, that it will have an answer.

        Or those of the first `gateway.status_s` seconds. Blocks; raises `NoAnswer` and `ClientLeft`, so that a stream
        can still say with its status that there will be no answer.
        """
        undecided = {request.messages for request in self.accepted}
        deadline = time.monotonic() + self._services.settings.status_s
        first: list[ChoiceEvent] = []
        for choice_event in events:
            if choice_event is not None:
                first.append(choice_event)
                index, event = choice_event
                if not isinstance(self.checked(event), Queued | Started):
                    undecided.discard(self.accepted[index].messages)
            if not undecided or time.monotonic() >= deadline:
                break
        return first

    def answers(self) -> list[Answer]:
        """All answers, in the order of the choices. Blocks; raises `NoAnswer` and `ClientLeft`."""
        events = ((index, self.checked(event)) for index, event in filter(None, self.events()))
        results = {index: event.result for index, event in events if isinstance(event, Done)}
        return [Answer(request.request_id, results[index]) for index, request in enumerate(self.accepted)]


def answer_whole(jobs: Jobs, body: Callable[[list[Answer]], Wire]) -> Response:
    """Wait for all answers and make the body of them. Raises `NoAnswer` and `ClientLeft`."""
    try:
        return json_answer(body(jobs.answers()), headers=jobs.headers)
    finally:
        jobs.cancel()


def answer_streamed(
    jobs: Jobs, permit: StreamPermit, lines: Callable[[Iterator[ChoiceEvent]], Iterator[str]]
) -> Response:
    """Stream the lines that the events become, once it is known that there will be an answer. Raises `NoAnswer`.

    A client that leaves cancels the jobs, unless they have a key.
    """
    events = jobs.events()
    try:
        first = jobs.first_events(events)
    except Exception:
        jobs.cancel()
        raise
    response = event_stream(_until_client_leaves(lines(chain(first, events))))
    response.headers.extend(jobs.headers)
    response.call_on_close(jobs.cancel)
    return permit.release_after(response)


def answer(jobs: Jobs, dialect: Dialect, permit: StreamPermit, body: CompletionOptions) -> Response:
    """Wait and answer, or send text as soon as it is final, as the body asks for."""
    if not body.stream:
        return answer_whole(jobs, dialect.whole)
    include_usage = bool(body.stream_options and body.stream_options.include_usage)
    return answer_streamed(jobs, permit, lambda events: _lines(jobs, events, dialect, include_usage=include_usage))


def _until_client_leaves(lines: Iterator[str]) -> Iterator[str]:
    try:
        yield from lines
    except ClientLeft:
        return


def _data(document: Wire) -> str:
    """A server-sent event."""
    return f"data: {document.model_dump_json()}\n\n"


def _lines(jobs: Jobs, events: Iterator[ChoiceEvent], dialect: Dialect, *, include_usage: bool) -> Iterator[str]:
    yield from (_data(chunk) for index in range(len(jobs.accepted)) if (chunk := dialect.opening(index)) is not None)
    stable = [StableText(request.policy) for request in jobs.accepted]
    # Log-probabilities come with the result and belong to the text beside them: with them, no text is sent before it.
    only_whole = [request.sampling.logprobs for request in jobs.accepted]
    answers: dict[int, Answer] = {}
    try:
        for choice_event in events:
            if choice_event is None:
                yield HEARTBEAT
                continue
            index, event = choice_event
            text = stable[index].take(jobs.checked(event))
            if isinstance(event, Done):
                answers[index] = Answer(jobs.accepted[index].request_id, event.result)
                unsent = event.result.text if only_whole[index] else text
                yield _data(dialect.closing(index, answers[index], unsent))
            elif text and not only_whole[index]:
                yield _data(dialect.piece(index, text))
    except (NoAnswer, Diverged) as reason:
        error = reason if isinstance(reason, NoAnswer) else stream_broken_off(str(reason))
        yield _data(openai_error(error)[1])
        return
    if include_usage:
        yield _data(dialect.usage([answers[index] for index in range(len(jobs.accepted))]))
    yield DONE_LINE
