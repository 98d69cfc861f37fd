"""An order as the body of an OpenAI chat completion, and its stream of chunks as an answer. Knows no connection."""

import logging
from collections.abc import AsyncIterator
from typing import Annotated, Any

from pydantic import AliasPath, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from schemas.requests import Sampling
from schemas.results import DraftStatistics, FailureKind, FinishReason, RivalLogprob, TokenBytes, TokenLogprob
from workers.cloud.answer_order import AnswerOrder, CloudAnswer
from workers.cloud.text_events import TextEvents
from workers.runtime.engine import Listener
from workers.runtime.failures import RequestRefused
from workers.runtime.logprob_joining import DoesNotJoin, joined

log = logging.getLogger(__name__)

#: The token id where the protocol has none.
UNKNOWN_TOKEN_ID = -1
#: Options that are not in OpenAI's own protocol and are sent only if the request sets them; vLLM knows them.
EXTENSIONS = ("top_k", "repetition_penalty")
#: How much of a server's error message is passed on, in characters.
MAX_COMPLAINT_CHARS = 300
#: The largest count of tokens accepted from a server: more than any context, and few enough to be allocated.
MAX_COUNT = 1 << 24
#: Statuses that say that the request is at fault. A tuple, since what a server sends as a code may be unhashable.
REFUSING_STATUSES = (400, 422)
#: The prefix of a line of data in an event stream.
DATA = "data:"
#: OpenAI's finish reasons as ours.
FINISH_REASONS = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH}

#: Servers send null for what they could leave out.
NullAsEmpty = BeforeValidator(lambda value: () if value is None else value)
#: A server's count of tokens.
Count = Annotated[int, Field(ge=0, le=MAX_COUNT)]


class _Part(BaseModel):
    """A part of a chunk. Fields that are not named here are ignored; errors do not repeat their input."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)


class _Rival(_Part):
    token: str
    logprob: float
    #: A token may be a part of a character; many servers leave this out.
    bytes: TokenBytes | None = None

    def fields(self) -> dict[str, Any]:
        """Those of a `RivalLogprob`."""
        raw = tuple(self.token.encode()) if self.bytes is None else self.bytes
        return {"token": self.token, "bytes": raw, "token_id": UNKNOWN_TOKEN_ID, "logprob": self.logprob}


class _Token(_Rival):
    top_logprobs: Annotated[tuple[_Rival, ...], NullAsEmpty] = ()


class _Choice(_Part):
    content: str | None = Field(None, validation_alias=AliasPath("delta", "content"))
    finish_reason: str | None = None
    logprobs: Annotated[tuple[_Token, ...], NullAsEmpty] = Field((), validation_alias=AliasPath("logprobs", "content"))


class _Usage(_Part):
    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    cached_tokens: Count | None = Field(None, validation_alias=AliasPath("prompt_tokens_details", "cached_tokens"))


class Chunk(_Part):
    """One chunk of a streamed chat completion, as far as it is used here."""

    choices: Annotated[tuple[_Choice, ...], NullAsEmpty] = ()
    usage: _Usage | None = None
    error: Any = None


def request_body(order: AnswerOrder, model: str, *, salt: str | None) -> dict[str, Any]:
    """The body of `POST /chat/completions`. Raises `RequestRefused` for what the protocol cannot say.

    `salt` keeps vLLM from sharing the request's cache with those of other salts; other servers may refuse it.
    """
    sampling, plain = order.sampling, Sampling()
    if sampling.grammar is not None:
        raise RequestRefused(FailureKind.UNSUPPORTED_OPTION, "grammar: OpenAI's protocol has none; use json_schema")
    body: dict[str, Any] = {
        "model": model,
        "messages": [message.model_dump() for message in order.messages],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
    }
    for name in ("seed", "frequency_penalty", "presence_penalty", *EXTENSIONS):
        if getattr(sampling, name) != getattr(plain, name):
            body[name] = getattr(sampling, name)
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if sampling.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias.items()}
    if sampling.logprobs:
        body |= {"logprobs": True, "top_logprobs": sampling.top_logprobs}
    if sampling.json_schema is not None:
        schema = {"name": "answer", "schema": sampling.json_schema, "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    if salt is not None:
        body["cache_salt"] = salt
    return body


async def chunks(lines: AsyncIterator[str]) -> AsyncIterator[Chunk]:
    """The chunks of an event stream. Raises `RequestRefused` for an error, and for data that is not a chunk."""
    async for line in lines:
        data = line.removeprefix(DATA).strip()
        if not line.startswith(DATA) or data == "[DONE]":
            continue
        try:
            chunk = Chunk.model_validate_json(data)
        except ValidationError as error:
            field = ".".join(str(part) for part in error.errors()[0]["loc"]) or "it"
            reason = f"the cloud server sent what is no chunk of an answer ({field}: {error.errors()[0]['msg']})"
            raise RequestRefused(FailureKind.ENGINE_ERROR, reason) from error
        if chunk.error:
            raise _stream_failure(chunk.error)
        yield chunk


def _stream_failure(error: Any) -> RequestRefused:
    """What an error in the stream means: vLLM refuses some options so, with the status that it would have had."""
    if isinstance(error, dict) and error.get("code") in REFUSING_STATUSES:
        return refusal(error["code"], str(error.get("message")))
    complaint = str(error)[:MAX_COMPLAINT_CHARS]
    return RequestRefused(FailureKind.ENGINE_ERROR, f"the cloud server ended the answer: {complaint}")


def refusal(status: int, complaint: str) -> RequestRefused:
    """The failure that a status means for the request, where trying again would not help."""
    kind, what = FailureKind.ENGINE_ERROR, f"answered {status}"
    if status == 400 and "context length" in complaint:
        kind, what = FailureKind.PROMPT_TOO_LONG, "refused the prompt"
    elif status in REFUSING_STATUSES:
        kind, what = FailureKind.UNSUPPORTED_OPTION, "refused the request"
        if "cache_salt" in complaint:
            what += " (for a server that takes no cache_salt, set cloud.openai.cache_salt: false)"
    return RequestRefused(kind, f"the cloud server {what}: {complaint[:MAX_COMPLAINT_CHARS]}")


class Reply:
    """One answer as its chunks come in."""

    def __init__(self, listener: Listener | None) -> None:
        self._listener = listener
        self._events = TextEvents(has_draft=False)
        self._text = ""
        self._logprobs: list[TokenLogprob] = []
        self._finish_reason: str | None = None
        self._usage = _Usage()
        self._num_pieces = 0

    @property
    def num_tokens(self) -> int:
        """Tokens so far: the server's count at the end; until then each piece of text counts as one."""
        counted = self._usage.completion_tokens
        return self._num_pieces if counted is None else counted

    def take(self, chunk: Chunk) -> None:
        """Take the next chunk of the stream."""
        for choice in chunk.choices:
            self._add(choice.content or "")
            self._finish_reason = choice.finish_reason or self._finish_reason
            for token in choice.logprobs:
                top = tuple(RivalLogprob(**rival.fields()) for rival in token.top_logprobs)
                self._logprobs.append(TokenLogprob(**token.fields(), top=top))
        self._usage = chunk.usage or self._usage

    def _add(self, text: str) -> None:
        self._num_pieces += bool(text)
        self._text += text
        if self._listener:
            for event in self._events.of(text):
                self._listener(event)

    def answer(self, draft: DraftStatistics | None) -> CloudAnswer:
        """The whole answer. The protocol has no token ids: there are as many unknown ones as tokens."""
        if self._finish_reason not in FINISH_REASONS:
            reason = f"the cloud server ended the answer with {self._finish_reason!r}"
            raise RequestRefused(FailureKind.ENGINE_ERROR, reason)
        return CloudAnswer(
            text=self._text,
            token_ids=(UNKNOWN_TOKEN_ID,) * self.num_tokens,
            finish_reason=FINISH_REASONS[self._finish_reason],
            prompt_tokens=self._usage.prompt_tokens or 0,
            cached_tokens=self._usage.cached_tokens or 0,
            draft=draft,
            logprobs=self._joined_logprobs(),
        )

    def _joined_logprobs(self) -> tuple[TokenLogprob, ...]:
        """Those of tokens that are part of the text; none where they do not fit the server's own text."""
        try:
            return joined(self._logprobs, self._text)
        except DoesNotJoin as reason:
            log.warning("remote_logprobs_left_out entries=%d reason=%r", len(self._logprobs), str(reason))
            return ()
