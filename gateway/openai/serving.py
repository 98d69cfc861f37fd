"""Carries OpenAI-style requests out: submits the jobs, waits or streams, cancels what nobody waits for any more."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain

from flask import Response

from broker.event_streams import BEGINNING
from broker.idempotency import Idempotency
from gateway.http.client_disconnect import ClientLeft, asking_client_has_left
from gateway.http.idempotency import REPLAYED
from gateway.jobs.answers import event_stream, json_answer
from gateway.jobs.submission import Submitted, submit_all
from gateway.openai import errors
from gateway.openai.shapes import Answer, Dialect
from gateway.openai.stable_text import Diverged, StableText
from gateway.services import Services
from schemas.events import FINAL_KINDS, Cancelled, Done, Event, Failed, Queued, Started
from schemas.openai_models import OpenAIError
from schemas.requests import AcceptedRequest, JobRequest

#: The end of an OpenAI-style stream.
DONE_LINE = "data: [DONE]\n\n"
#: Seconds between looks whether the client is still there.
LOOK_S = 2.0
#: Written where nothing happened for a while: the write that notices a client that has left.
HEARTBEAT = ": still here\n\n"


class NoAnswer(Exception):
    """One of the jobs will have no answer."""

    def __init__(self, status: int, error: OpenAIError) -> None:
        super().__init__(error.error.message)
        self.status = status
        self.error = error


#: An event with the place of the choice that it happens to; None for a sign of life.
Told = tuple[int, Event] | None


class Jobs:
    """The jobs of one request, one for each choice."""

    def __init__(self, services: Services, submitted: Submitted) -> None:
        self._services = services
        self._client_has_left = asking_client_has_left()
        self.accepted = submitted.requests
        #: Headers that say whether an earlier request submitted them.
        self.headers = REPLAYED if submitted.replayed else {}
        self._keyed = submitted.keyed
        self._ended: set[str] = set()

    def cancel(self) -> None:
        """Cancel those that have not ended, as nobody waits for them any more.

        Not where they have a key: whoever gave it may send the request again, and others may follow the same jobs now.
        """
        if self._keyed:
            return
        for request in self.accepted:
            if request.request_id not in self._ended:
                self._services.store.cancel(request.request_id)

    def events(self) -> Iterator[Told]:
        """What happens, from the beginning on.

        Raises `NoAnswer` where it takes longer than `gateway.max_answer_s`, and `ClientLeft`.
        """
        limit_s = self._services.settings.max_answer_s
        places = {request.request_id: place for place, request in enumerate(self.accepted)}
        positions = dict.fromkeys(places, BEGINNING)
        looked_at = time.monotonic()
        for told in self._services.hub.follow_all(positions, time.monotonic() + limit_s):
            if told is None or time.monotonic() - looked_at > LOOK_S:
                looked_at = time.monotonic()
                if self._client_has_left():
                    raise ClientLeft
            if told is None:
                yield None
                continue
            request_id, streamed = told
            if streamed.event.type in FINAL_KINDS:
                self._ended.add(request_id)
            yield places[request_id], streamed.event
        if len(self._ended) < len(self.accepted):
            raise NoAnswer(*errors.not_in_time(limit_s, goes_on=self._keyed))

    def beginning(self, events: Iterator[Told]) -> list[Told]:
        """What of the events shows, for each prompt, that there will be an answer.

        Or what came within `gateway.status_s`. Blocks; raises `NoAnswer` where a prompt will have none, so that a
        stream can still say so with its status.
        """
        undecided = {request.messages for request in self.accepted}
        deadline = time.monotonic() + self._services.settings.status_s
        past: list[Told] = []
        for told in events:
            if told is not None:
                past.append(told)
                place, event = checked(*told)
                if not isinstance(event, Queued | Started):
                    undecided.discard(self.accepted[place].messages)
            if not undecided or time.monotonic() >= deadline:
                break
        return past

    def answers(self) -> list[Answer]:
        """All answers, in the order of the choices. Blocks; raises `NoAnswer` and `ClientLeft`."""
        told = (checked(*told) for told in self.events() if told is not None)
        results = {place: event.result for place, event in told if isinstance(event, Done)}
        return [Answer(request.request_id, results[place]) for place, request in enumerate(self.accepted)]


def checked(place: int, event: Event) -> tuple[int, Event]:
    """The same, unless it says that there will be no answer: raises `NoAnswer`."""
    match event:
        case Failed(failure=failure):
            raise NoAnswer(*errors.from_failure(failure))
        case Cancelled():
            raise NoAnswer(*errors.cancelled())
    return place, event


def answer_whole(
    services: Services,
    bodies: Sequence[JobRequest],
    dialect: Callable[[AcceptedRequest], Dialect],
    *,
    key: Idempotency | None = None,
) -> Response:
    """Submit, wait for everything, answer."""
    with services.slots.taken():
        jobs = Jobs(services, submit_all(services, bodies, key=key))
        try:
            return json_answer(dialect(jobs.accepted[0]).whole(jobs.answers()), headers=jobs.headers)
        except NoAnswer as reason:
            return json_answer(reason.error, reason.status, jobs.headers)
        finally:
            jobs.cancel()


def answer_in_pieces(
    services: Services,
    bodies: Sequence[JobRequest],
    dialect: Callable[[AcceptedRequest], Dialect],
    *,
    include_usage: bool,
    key: Idempotency | None = None,
) -> Response:
    """Submit, and send text that will stand as soon as that is known. Jobs without a key end with their client."""

    def lines(jobs: Jobs, events: Iterator[Told]) -> Iterator[str]:
        return _lines(jobs, events, dialect(jobs.accepted[0]), include_usage=include_usage)

    return answer_streamed(services, lambda: submit_all(services, bodies, key=key), lines)


def answer_streamed(
    services: Services,
    submitted: Callable[[], Submitted],
    lines: Callable[[Jobs, Iterator[Told]], Iterator[str]],
) -> Response:
    """Submit, and answer with the lines that the jobs' events become, once it is known that there will be an answer.

    A client that leaves cancels the jobs, unless they have a key.
    """
    with services.slots.taken() as slot:
        jobs = Jobs(services, submitted())
        events = jobs.events()
        try:
            past = jobs.beginning(events)
        except NoAnswer as reason:
            jobs.cancel()
            return json_answer(reason.error, reason.status, jobs.headers)
        except Exception:
            jobs.cancel()
            raise
        response = event_stream(_until_the_client_leaves(lines(jobs, chain(past, events))))
        response.headers.extend(jobs.headers)
        response.call_on_close(jobs.cancel)
        return slot.held_by(response)


def _until_the_client_leaves(lines: Iterator[str]) -> Iterator[str]:
    try:
        yield from lines
    except ClientLeft:
        return


def data_line(document: str) -> str:
    """One server-sent event."""
    return f"data: {document}\n\n"


def _lines(jobs: Jobs, events: Iterator[Told], dialect: Dialect, *, include_usage: bool) -> Iterator[str]:
    for place in range(len(jobs.accepted)):
        opening = dialect.opening(place)
        if opening is not None:
            yield data_line(opening.model_dump_json())
    standing = [StableText(request.policy) for request in jobs.accepted]
    # Log-probabilities come with the result, and belong to the text beside them: then nothing is said before it.
    held_back = [request.sampling.logprobs for request in jobs.accepted]
    answers: dict[int, Answer] = {}
    try:
        for told in events:
            if told is None:
                yield HEARTBEAT
                continue
            place, event = checked(*told)
            text = standing[place].take(event)
            if isinstance(event, Done):
                answers[place] = Answer(jobs.accepted[place].request_id, event.result)
                whole = event.result.text if held_back[place] else text
                yield data_line(dialect.closing(place, answers[place], whole).model_dump_json())
            elif text and not held_back[place]:
                yield data_line(dialect.piece(place, text).model_dump_json())
    except NoAnswer as reason:
        yield data_line(reason.error.model_dump_json())
        return
    except Diverged as reason:
        yield data_line(errors.broken_off(str(reason))[1].model_dump_json())
        return
    if include_usage:
        usage = dialect.usage([answers[place] for place in range(len(jobs.accepted))])
        yield data_line(usage.model_dump_json())
    yield DONE_LINE


def in_openais_form(response: Response) -> Response:
    """A problem document as OpenAI's clients read errors; anything else as it is."""
    if response.content_type != "application/problem+json":
        return response
    status, error = errors.from_problem(json.loads(response.get_data()))
    translated = json_answer(error, status)
    for name, value in response.headers:
        if name not in {"Content-Type", "Content-Length"}:
            translated.headers[name] = value
    return translated
