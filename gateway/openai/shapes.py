"""Results as OpenAI's objects and chunks. Pure.

A dialect is what one route makes of results: a whole completion, or the chunks of a stream.
"""

import codecs
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from gateway.openai.translation import prompts_of
from schemas.openai_answers import (
    AssistantMessage,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatLogprob,
    ChatLogprobs,
    CompletionDetails,
    Delta,
    PromptDetails,
    TextChoice,
    TextCompletion,
    TextLogprobs,
    TokenUsage,
    TopLogprob,
)
from schemas.openai_chat import ChatCompletionRequest, CompletionRequest
from schemas.openai_models import report_of
from schemas.policy import Tier
from schemas.requests import AcceptedRequest
from schemas.results import Result, RivalLogprob, TokenLogprob


@dataclass(frozen=True)
class Answer:
    """One choice's job and its result."""

    job_id: str
    result: Result


@dataclass(frozen=True)
class ChatDialect:
    """`/v1/chat/completions`."""

    id: str
    created: int
    model: str
    #: Whether log-probabilities were asked for.
    logprobs: bool = False

    @classmethod
    def of(cls, body: ChatCompletionRequest, first: AcceptedRequest) -> Self:
        """For the completion that the body asks for; `first` is the request of its first choice."""
        return cls(f"chatcmpl-{first.request_id}", int(first.accepted_at_s), body.model, first.sampling.logprobs)

    def whole(self, answers: Sequence[Answer]) -> ChatCompletion:
        """The completion with all answers."""
        choices = tuple(
            ChatChoice(
                index=index,
                message=AssistantMessage(content=answer.result.text),
                logprobs=self._logprobs(answer.result),
                finish_reason=answer.result.finish_reason,
                firstdraft=report_of(answer.job_id, answer.result),
            )
            for index, answer in enumerate(answers)
        )
        return ChatCompletion(
            id=self.id,
            created=self.created,
            model=self.model,
            choices=choices,
            usage=usage_of(answers),
            firstdraft=choices[0].firstdraft,
        )

    def opening(self, index: int) -> ChatChunk:
        """The first chunk of a choice."""
        return self._chunk(ChatChunkChoice(index=index, delta=Delta(role="assistant", content="")))

    def piece(self, index: int, text: str) -> ChatChunk:
        """A chunk with new text of a choice."""
        return self._chunk(ChatChunkChoice(index=index, delta=Delta(content=text)))

    def closing(self, index: int, answer: Answer, text: str) -> ChatChunk:
        """The last chunk of a choice, with the text that was not sent yet."""
        choice = ChatChunkChoice(
            index=index,
            delta=Delta(content=text or None),
            logprobs=self._logprobs(answer.result),
            finish_reason=answer.result.finish_reason,
        )
        return self._chunk(choice, firstdraft=report_of(answer.job_id, answer.result))

    def usage(self, answers: Sequence[Answer]) -> ChatChunk:
        """The chunk with the token counts, once all choices have ended."""
        return self._chunk(usage=usage_of(answers))

    def _chunk(self, *choices: ChatChunkChoice, **fields: Any) -> ChatChunk:
        return ChatChunk(id=self.id, created=self.created, model=self.model, choices=choices, **fields)

    def _logprobs(self, result: Result) -> ChatLogprobs | None:
        if not self.logprobs or not _has_logprobs(result):
            return None
        return ChatLogprobs(content=tuple(map(chat_logprob, result.logprobs)))


@dataclass(frozen=True)
class TextDialect:
    """`/v1/completions`."""

    id: str
    created: int
    model: str
    #: The text before each choice's own: its prompt, where that is to be echoed.
    echoed: Sequence[str] = ()
    num_prompts: int = 1
    #: Whether log-probabilities were asked for.
    logprobs: bool = False

    @classmethod
    def of(cls, body: CompletionRequest, first: AcceptedRequest) -> Self:
        """For the completion that the body asks for; `first` is the request of its first choice."""
        prompts = prompts_of(body)
        echoed = [prompt for prompt in prompts for _ in range(body.n or 1)] if body.echo else []
        created, logprobs = int(first.accepted_at_s), first.sampling.logprobs
        return cls(f"cmpl-{first.request_id}", created, body.model, echoed, len(prompts), logprobs)

    def whole(self, answers: Sequence[Answer]) -> TextCompletion:
        """The completion with all answers."""
        choices = [self._choice(i, answer, self._echo(i) + answer.result.text) for i, answer in enumerate(answers)]
        usage = usage_of(answers, self.num_prompts)
        return self._completion(*choices, usage=usage, firstdraft=choices[0].firstdraft)

    def opening(self, index: int) -> TextCompletion | None:
        """The first chunk of a choice, if its prompt is echoed."""
        return self.piece(index, self._echo(index)) if self._echo(index) else None

    def piece(self, index: int, text: str) -> TextCompletion:
        """A chunk with new text of a choice."""
        return self._completion(TextChoice(index=index, text=text))

    def closing(self, index: int, answer: Answer, text: str) -> TextCompletion:
        """The last chunk of a choice, with the text that was not sent yet."""
        return self._completion(self._choice(index, answer, text))

    def usage(self, answers: Sequence[Answer]) -> TextCompletion:
        """The chunk with the token counts, once all choices have ended."""
        return self._completion(usage=usage_of(answers, self.num_prompts))

    def _echo(self, index: int) -> str:
        return self.echoed[index] if self.echoed else ""

    def _choice(self, index: int, answer: Answer, text: str) -> TextChoice:
        return TextChoice(
            index=index,
            text=text,
            logprobs=_text_logprobs(answer.result, len(self._echo(index))) if self.logprobs else None,
            finish_reason=answer.result.finish_reason,
            firstdraft=report_of(answer.job_id, answer.result),
        )

    def _completion(self, *choices: TextChoice, **fields: Any) -> TextCompletion:
        return TextCompletion(id=self.id, created=self.created, model=self.model, choices=choices, **fields)


#: What one route makes of the answers to its choices.
Dialect = ChatDialect | TextDialect


def usage_of(answers: Sequence[Answer], num_prompts: int = 1) -> TokenUsage:
    """The tokens of all choices together. A prompt counts once, however many choices it has."""
    per_prompt = len(answers) // num_prompts
    results = [answer.result for answer in answers]
    prompt = sum(result.usage.prompt_tokens for result in results[::per_prompt])
    completion = sum(result.usage.completion_tokens for result in results)
    verified = [result.draft for result in results if result.draft is not None and result.draft.verified]
    return TokenUsage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion,
        prompt_tokens_details=PromptDetails(
            cached_tokens=sum(cached_tokens(result) for result in results[::per_prompt])
        ),
        completion_tokens_details=CompletionDetails(
            accepted_prediction_tokens=sum(draft.accepted_tokens for draft in verified),
            rejected_prediction_tokens=sum(draft.drafted_tokens - draft.accepted_tokens for draft in verified),
        ),
    )


def cached_tokens(result: Result) -> int:
    """Prompt tokens that the answering tier read from its KV cache."""
    return result.usage.edge_cached_tokens if result.tier == Tier.EDGE else result.usage.cloud_cached_tokens


def chat_logprob(token: TokenLogprob) -> ChatLogprob:
    """One token's log-probabilities in OpenAI's form. `bytes` is null for a token without any, as a control token."""
    top = tuple(TopLogprob(token=top.token, logprob=top.logprob, bytes=top.bytes or None) for top in token.top)
    return ChatLogprob(token=token.token, logprob=token.logprob, bytes=token.bytes, top_logprobs=top)


def _text_logprobs(result: Result, offset: int) -> TextLogprobs | None:
    if not _has_logprobs(result):
        return None
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    offsets = []
    for token in result.logprobs:
        offsets.append(offset)
        offset += len(decoder.decode(bytes(token.bytes)))
    return TextLogprobs(
        tokens=tuple(map(_text_token, result.logprobs)),
        token_logprobs=tuple(token.logprob for token in result.logprobs),
        top_logprobs=tuple({_text_token(top): top.logprob for top in token.top} for token in result.logprobs),
        text_offset=tuple(offsets),
    )


def _has_logprobs(result: Result) -> bool:
    """Whether all are known: a remote cloud may send none. An empty answer has none, and that is all of them."""
    return bool(result.logprobs) or not result.text


def _text_token(token: RivalLogprob) -> str:
    """A token as a string: as OpenAI does, one that is not whole characters is spelled by its bytes."""
    raw = bytes(token.bytes)
    try:
        return raw.decode() or token.token
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
