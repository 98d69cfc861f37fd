"""An order as the body of an OpenAI chat completion, and its stream of chunks as an answer. Knows no connection."""

import json
from collections.abc import AsyncIterator
from typing import Any

from schemas.requests import Sampling
from schemas.results import DraftStatistics, FailureKind, FinishReason, TokenLogprob
from workers.cloud.answering import AnswerOrder, CloudAnswer, Listener
from workers.cloud.narrating import Narration
from workers.failures import RequestRefused

#: What a token id is where the protocol tells none.
UNKNOWN_TOKEN_ID = -1
#: Options that are no part of OpenAI's own protocol and are sent only where they are asked for; vLLM knows them.
EXTENSIONS = ("top_k", "repetition_penalty")
#: Characters of a server's complaint that are passed on.
COMPLAINT_CHARS = 300
#: The prefix of a line of data in an event stream.
DATA = "data:"


def request_body(order: AnswerOrder, model: str, *, salt: str | None) -> dict[str, Any]:
    """The body of `POST /chat/completions`. Raises `RequestRefused` for what the protocol cannot say.

    `salt` keeps vLLM from sharing the request's cache; other servers may refuse it.
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


async def pieces(lines: AsyncIterator[str]) -> AsyncIterator[dict[str, Any]]:
    """The chunks of an event stream. Raises `RequestRefused` where the server ends it with an error."""
    async for line in lines:
        data = line.removeprefix(DATA).strip()
        if not line.startswith(DATA) or data == "[DONE]":
            continue
        chunk = json.loads(data)
        if "error" in chunk:
            raise RequestRefused(FailureKind.ENGINE_ERROR, f"the cloud server ended the answer: {chunk['error']}")
        yield chunk


def refusal(status: int, complaint: str) -> RequestRefused:
    """What a status that will not pass by waiting means for the request."""
    said = complaint[:COMPLAINT_CHARS]
    if status == 400 and "context length" in complaint:
        return RequestRefused(FailureKind.PROMPT_TOO_LONG, f"the cloud server refused the prompt: {said}")
    if status in {400, 422}:
        return RequestRefused(FailureKind.UNSUPPORTED_OPTION, f"the cloud server refused the request: {said}")
    return RequestRefused(FailureKind.ENGINE_ERROR, f"the cloud server answered {status}: {said}")


class Reply:
    """One answer as its chunks come in."""

    def __init__(self, listener: Listener | None) -> None:
        self._listener = listener
        self._narration = Narration(has_draft=False)
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

    def take(self, chunk: dict[str, Any]) -> None:
        """The next chunk of the stream."""
        for choice in chunk.get("choices", ()):
            self._hear(choice.get("delta", {}).get("content") or "")
            self._finish_reason = choice.get("finish_reason") or self._finish_reason
            for entry in (choice.get("logprobs") or {}).get("content") or ():
                self._logprobs.append(_logprob(entry))
        if usage := chunk.get("usage"):
            self._prompt_tokens = usage.get("prompt_tokens", 0)
            self._completion_tokens = usage.get("completion_tokens")
            self.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0

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
            logprobs=tuple(self._logprobs),
        )


def _logprob(entry: dict[str, Any]) -> TokenLogprob:
    return TokenLogprob(
        token=entry["token"],
        token_id=UNKNOWN_TOKEN_ID,
        logprob=entry["logprob"],
        top=tuple((item["token"], item["logprob"]) for item in entry.get("top_logprobs", ())),
    )
