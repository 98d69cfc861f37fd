"""An order as the body of an OpenAI chat completion, and its stream of chunks as an answer. Knows no connection."""

import logging
from collections.abc import AsyncIterator
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from schemas.requests import Sampling
from schemas.results import DraftStatistics, FailureKind, FinishReason, RivalLogprob, TokenBytes, TokenLogprob
from workers.cloud.cloud_engine import AnswerOrder, CloudAnswer, Listener
from workers.cloud.text_events import TextEvents
from workers.runtime.failures import RequestRefused
from workers.runtime.logprob_joining import DoesNotJoin, joined

log = logging.getLogger(__name__)

#: What a token id is where the protocol tells none.
UNKNOWN_TOKEN_ID = -1
#: Options that are no part of OpenAI's own protocol and are sent only where they are asked for; vLLM knows them.
EXTENSIONS = ("top_k", "repetition_penalty")
#: Characters of a server's complaint that are passed on.
COMPLAINT_CHARS = 300
#: The most tokens that a server's counts may tell of: more than any context, and few enough to be allocated.
MAX_COUNT = 1 << 24
#: The prefix of a line of data in an event stream.
DATA = "data:"


#: What servers leave out they also send as null.
NullAsNothing = BeforeValidator(lambda value: () if value is None else value)
#: A server's count of tokens.
Count = Annotated[int, Field(ge=0, le=MAX_COUNT)]


class _Told(BaseModel):
    """A part of a chunk. What is not named here is ignored; errors do not repeat their input."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)


class _Rival(_Told):
    token: str
    logprob: float
    #: A token may be a part of a character; many servers leave this out.
    bytes: TokenBytes | None = None


class _Token(_Rival):
    top_logprobs: Annotated[tuple[_Rival, ...], NullAsNothing] = ()


class _Logprobs(_Told):
    content: Annotated[tuple[_Token, ...], NullAsNothing] = ()


class _Delta(_Told):
    content: str | None = None


class _Choice(_Told):
    delta: _Delta | None = None
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _PromptDetails(_Told):
    cached_tokens: Count | None = None


class _Usage(_Told):
    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    prompt_tokens_details: _PromptDetails | None = None


class Chunk(_Told):
    """One chunk of a streamed chat completion, as far as it matters here."""

    choices: Annotated[tuple[_Choice, ...], NullAsNothing] = ()
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


async def pieces(lines: AsyncIterator[str]) -> AsyncIterator[Chunk]:
    """The chunks of an event stream. Raises `RequestRefused` for an error, and for what is no chunk."""
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
            said = str(chunk.error)[:COMPLAINT_CHARS]
            raise RequestRefused(FailureKind.ENGINE_ERROR, f"the cloud server ended the answer: {said}")
        yield chunk


def refusal(status: int, complaint: str) -> RequestRefused:
    """What a status that will not pass by waiting means for the request."""
    said = complaint[:COMPLAINT_CHARS]
    if status == 400 and "context length" in complaint:
        return RequestRefused(FailureKind.PROMPT_TOO_LONG, f"the cloud server refused the prompt: {said}")
    if status in {400, 422} and "cache_salt" in complaint:
        advice = "for a server that takes no cache_salt, set cloud.openai.cache_salt: false"
        return RequestRefused(
            FailureKind.UNSUPPORTED_OPTION, f"the cloud server refused the request ({advice}): {said}"
        )
    if status in {400, 422}:
        return RequestRefused(FailureKind.UNSUPPORTED_OPTION, f"the cloud server refused the request: {said}")
    return RequestRefused(FailureKind.ENGINE_ERROR, f"the cloud server answered {status}: {said}")


class Reply:
    """One answer as its chunks come in."""

    def __init__(self, listener: Listener | None) -> None:
        self._listener = listener
        self._narration = TextEvents(has_draft=False)
        self._text = ""
        self._logprobs: list[TokenLogprob] = []
        self._finish_reason: str | None = None
        self._prompt_tokens = 0
        self._completion_tokens: int | None = None
        self._chunks = 0
        #: Prompt tokens that the server's cache spared, where it says so.
        self.cached_tokens = 0

    @property
    def written(self) -> int:
        """Tokens so far: the server's count at the end, until then one a piece of text."""
        return self._chunks if self._completion_tokens is None else self._completion_tokens

    def take(self, chunk: Chunk) -> None:
        """The next chunk of the stream."""
        for choice in chunk.choices:
            self._hear(choice.delta.content or "" if choice.delta else "")
            self._finish_reason = choice.finish_reason or self._finish_reason
            if choice.logprobs is not None:
                self._logprobs += map(_logprob, choice.logprobs.content)
        if usage := chunk.usage:
            self._prompt_tokens = usage.prompt_tokens or 0
            self._completion_tokens = usage.completion_tokens
            self.cached_tokens = (usage.prompt_tokens_details or _PromptDetails()).cached_tokens or 0

    def _hear(self, text: str) -> None:
        self._chunks += bool(text)
        self._text += text
        if self._listener:
            for piece in self._narration.tell(text):
                self._listener(piece)

    def answer(self, draft: DraftStatistics | None) -> CloudAnswer:
        """The whole. The protocol tells no token ids: there are as many unknown ones as tokens."""
        reasons = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH}
        if self._finish_reason not in reasons:
            raise RequestRefused(
                FailureKind.ENGINE_ERROR, f"the cloud server ended the answer with {self._finish_reason!r}"
            )
        return CloudAnswer(
            text=self._text,
            token_ids=(UNKNOWN_TOKEN_ID,) * self.written,
            finish_reason=reasons[self._finish_reason],
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self.cached_tokens,
            draft=draft,
            logprobs=self._joined_logprobs(),
        )

    def _joined_logprobs(self) -> tuple[TokenLogprob, ...]:
        """Those of the tokens with a part in the text; none where the server's do not join to its own text."""
        try:
            return joined(self._logprobs, self._text)
        except DoesNotJoin as reason:
            log.warning("remote_logprobs_left_out entries=%d reason=%r", len(self._logprobs), str(reason))
            return ()


def _logprob(entry: _Token) -> TokenLogprob:
    own = _told(entry)
    top = tuple(map(_told, entry.top_logprobs))
    return TokenLogprob(token=own.token, bytes=own.bytes, token_id=own.token_id, logprob=own.logprob, top=top)


def _told(entry: _Rival) -> RivalLogprob:
    raw = tuple(entry.token.encode()) if entry.bytes is None else entry.bytes
    return RivalLogprob(token=entry.token, bytes=raw, token_id=UNKNOWN_TOKEN_ID, logprob=entry.logprob)
