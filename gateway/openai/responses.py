"""OpenAI's responses: from a body to a job, from a job's record to a response, from its events to a stream. Pure."""

from collections.abc import Iterator, Sequence
from typing import Any

from gateway.jobs.request_validation import Refused
from gateway.openai.options import check_others
from gateway.openai.shapes import cached_tokens, chat_logprob
from gateway.openai.stable_text import Diverged, StableText
from gateway.openai.translation import as_job, conversation, schema_of
from schemas.events import Cancelled, Done, Event, Failed
from schemas.openai_chat import ChatMessage
from schemas.openai_models import report_of
from schemas.openai_responses import (
    IncompleteDetails,
    InputDetails,
    InputMessage,
    InputText,
    OutputDetails,
    OutputMessage,
    OutputText,
    Response,
    ResponseError,
    ResponseEvent,
    ResponseNote,
    ResponseRequest,
    ResponseUsage,
    TextConfig,
    TextFormat,
)
from schemas.requests import AcceptedRequest, JobRequest, Message
from schemas.results import Failure, FailureKind, FinishReason, Result

#: A response's id is this and the job's id.
ID_PREFIX = "resp_"
#: The value of `include` that asks for the log-probabilities of the answer's tokens.
INCLUDE_LOGPROBS = "message.output_text.logprobs"


def job_id_of(response_id: str) -> str | None:
    """The job of a response; None for an id that is not a response's."""
    return response_id.removeprefix(ID_PREFIX) if response_id.startswith(ID_PREFIX) else None


def response_job(body: ResponseRequest, policy: str | None, earlier: Sequence[Message]) -> JobRequest:
    """The job of a response that continues the `earlier` conversation. Raises `Refused`."""
    check_others(body.model_extra or {})
    instructions = [{"role": "system", "content": body.instructions}] if body.instructions else []
    text_format = _format(body)
    logprobs = INCLUDE_LOGPROBS in (body.include or ()) or bool(body.top_logprobs)
    return as_job(
        {
            "policy": policy,
            "messages": [*instructions, *(turn.model_dump() for turn in earlier), *_turns(body)],
            "max_tokens": body.max_output_tokens,
            "temperature": body.temperature,
            "top_p": body.top_p,
            "logprobs": logprobs,
            "top_logprobs": body.top_logprobs,
            "json_schema": schema_of(text_format.type, text_format.json_schema, "text.format.schema"),
            **(body.firstdraft.given() if body.firstdraft else {}),
        }
    )


def note_of(body: ResponseRequest) -> ResponseNote:
    """The part of the body that the response repeats."""
    return ResponseNote(
        model=body.model,
        instructions=body.instructions,
        previous_response_id=body.previous_response_id,
        background=bool(body.background),
        store=body.store is not False,
        metadata=body.metadata or {},
        text_format=_format(body).model_dump(exclude_none=True),
    )


def conversation_after(request: AcceptedRequest, note: ResponseNote, result: Result) -> list[Message]:
    """The conversation that the next response continues. Instructions are not carried over."""
    return [*_turns_before(request, note), Message(role="assistant", content=result.text)]


def input_items(request: AcceptedRequest, note: ResponseNote) -> list[InputMessage | OutputMessage]:
    """The turns that the response answers, in order, with those of the earlier responses that it continues."""
    items: list[InputMessage | OutputMessage] = []
    for index, turn in enumerate(_turns_before(request, note)):
        item_id = f"{_item_id(request)}_{index}"
        if turn.role == "assistant":
            content = (OutputText(text=turn.content),)
            items.append(OutputMessage(id=item_id, status="completed", content=content))
        else:
            items.append(InputMessage(id=item_id, role=turn.role, content=(InputText(text=turn.content),)))
    return items


def response_of(
    request: AcceptedRequest,
    note: ResponseNote,
    *,
    waits: bool = False,
    cancelled: bool = False,
    result: Result | None = None,
    failure: Failure | None = None,
) -> Response:
    """The response as it is now. `waits`: no worker has begun it."""
    response = Response(
        id=ID_PREFIX + request.request_id,
        created_at=int(request.accepted_at_s),
        status="cancelled" if cancelled else "queued" if waits and note.background else "in_progress",
        background=note.background,
        instructions=note.instructions,
        max_output_tokens=request.sampling.max_tokens,
        metadata=note.metadata,
        model=note.model,
        previous_response_id=note.previous_response_id,
        store=note.store,
        temperature=request.sampling.temperature,
        text=TextConfig(format=note.text_format),
        top_logprobs=request.sampling.top_logprobs,
        top_p=request.sampling.top_p,
    )
    if failure is not None:
        code = "invalid_prompt" if failure.kind == FailureKind.PROMPT_TOO_LONG else "server_error"
        error = ResponseError(code=code, message=failure.message)
        return response.model_copy(update={"status": "failed", "error": error})
    if result is None:
        return response
    cut = result.finish_reason == FinishReason.LENGTH
    message = OutputMessage(
        id=_item_id(request),
        status="incomplete" if cut else "completed",
        content=(OutputText(text=result.text, logprobs=tuple(map(chat_logprob, result.logprobs))),),
    )
    return response.model_copy(
        update={
            "status": message.status,
            "completed_at": None if cut else int(request.accepted_at_s + result.timings.total_ms / 1000),
            "incomplete_details": IncompleteDetails() if cut else None,
            "output": (message,),
            "usage": _usage(result),
            "firstdraft": report_of(request.request_id, result),
        }
    )


class ResponseStream:
    """A job's events as the events of a response's stream, numbered from 0.

    The same events always get the same numbers, so that any process can resume a stream that another began.
    """

    def __init__(self, request: AcceptedRequest, note: ResponseNote) -> None:
        self._request = request
        self._note = note
        self._stable = StableText(request.policy)
        self._next_number = 0
        self._item_id = _item_id(request)
        self._opened = False

    def opening(self) -> Iterator[ResponseEvent]:
        """The first events of every stream."""
        yield self._event("created", response=self._response(waits=True))
        if self._note.background:
            yield self._event("queued", response=self._response(waits=True))
        yield self._event("in_progress", response=self._response())

    def events_for(self, event: Event) -> Iterator[ResponseEvent]:
        """The stream's events for the job's next event."""
        try:
            text = self._stable.take(event)
        except Diverged as reason:
            yield self.broken_off("server_error", str(reason))
            return
        # Log-probabilities come with the result and belong to the text beside them.
        only_whole = self._request.sampling.logprobs
        match event:
            case Done():
                yield from self._end(event.result, event.result.text if only_whole else text)
            case Failed():
                yield self._event("failed", response=self._response(failure=event.failure))
            case Cancelled():  # OpenAI has no event for it; the response in it says so
                yield self._event("incomplete", response=self._response(cancelled=True))
            case _ if text and not only_whole:
                yield from self._delta(text, ())

    def broken_off(self, code: str, message: str) -> ResponseEvent:
        """The last event of a stream that ends before the response does."""
        return ResponseEvent(type="error", sequence_number=self._take_number(), code=code, message=message, param=None)

    def _delta(self, text: str, logprobs: tuple[object, ...]) -> Iterator[ResponseEvent]:
        yield from self._open()
        yield self._event("output_text.delta", **self._place(), delta=text, logprobs=logprobs)

    def _open(self) -> Iterator[ResponseEvent]:
        if self._opened:
            return
        self._opened = True
        item = OutputMessage(id=self._item_id, status="in_progress", content=())
        yield self._event("output_item.added", output_index=0, item=item)
        yield self._event("content_part.added", **self._place(), part=OutputText(text=""))

    def _end(self, result: Result, text: str) -> Iterator[ResponseEvent]:
        response = self._response(result=result)
        message = response.output[0]
        part = message.content[0]
        yield from self._open()
        if text:
            yield from self._delta(text, part.logprobs)
        yield self._event("output_text.done", **self._place(), text=result.text, logprobs=part.logprobs)
        yield self._event("content_part.done", **self._place(), part=part)
        yield self._event("output_item.done", output_index=0, item=message)
        yield self._event(response.status, response=response)

    def _response(self, **state: Any) -> Response:
        return response_of(self._request, self._note, **state)

    def _place(self) -> dict[str, object]:
        return {"item_id": self._item_id, "output_index": 0, "content_index": 0}

    def _event(self, kind: str, **fields: object) -> ResponseEvent:
        return ResponseEvent.model_validate(
            {"type": f"response.{kind}", "sequence_number": self._take_number(), **fields}
        )

    def _take_number(self) -> int:
        self._next_number += 1
        return self._next_number - 1


def _turns_before(request: AcceptedRequest, note: ResponseNote) -> Sequence[Message]:
    return request.messages[1:] if note.instructions else request.messages


def _item_id(request: AcceptedRequest) -> str:
    return f"msg_{request.request_id}"


def _usage(result: Result) -> ResponseUsage:
    usage = result.usage
    return ResponseUsage(
        input_tokens=usage.prompt_tokens,
        input_tokens_details=InputDetails(cached_tokens=cached_tokens(result)),
        output_tokens=usage.completion_tokens,
        output_tokens_details=OutputDetails(),
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
    )


def _turns(body: ResponseRequest) -> list[dict[str, str]]:
    if isinstance(body.input, str):
        return [{"role": "user", "content": body.input}]
    messages = []
    for index, item in enumerate(body.input):
        if item.type != "message" or item.role not in {"user", "assistant", "system", "developer"}:
            raise Refused(f"input.{index}", item.role or item.type, "only messages can be read")
        messages.append(ChatMessage.model_validate({"role": item.role, "content": item.content}))
    return conversation(messages)


def _format(body: ResponseRequest) -> TextFormat:
    return body.text.format if body.text else TextFormat()
