"""Results as OpenAI's objects and chunks. Pure.

A dialect is one route's way of saying the same: a whole answer, or pieces of one.
"""

import codecs
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

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
from schemas.openai_models import report_of
from schemas.policy import Tier
from schemas.results import Result, RivalLogprob, TokenLogprob
from schemas.wire import Wire


@dataclass(frozen=True)
class Answer:
    """One choice's job and its result."""

    job_id: str
    result: Result


class Dialect(Protocol):
    """One route's way of saying what became of its choices."""

    def whole(self, answers: Sequence[Answer]) -> Wire:
        """All answers at once."""

    def opening(self, index: int) -> Wire | None:
        """What a choice's stream begins with."""

    def piece(self, index: int, text: str) -> Wire:
        """New text of a choice."""

    def closing(self, index: int, answer: Answer, text: str) -> Wire:
        """The end of a choice, with text that was not said yet."""

    def usage(self, answers: Sequence[Answer]) -> Wire:
        """The tokens, once all choices have ended."""


@dataclass(frozen=True)
class ChatDialect:
    """`/v1/chat/completions`."""

    id: str
    created: int
    model: str
    #: Whether log-probabilities were asked for.
    logprobs: bool = False

    def whole(self, answers: Sequence[Answer]) -> ChatCompletion:
        """See `Dialect`."""
        choices = tuple(
            ChatChoice(
                index=index,
                message=AssistantMessage(content=answer.result.text),
                logprobs=_chat_logprobs(answer.result) if self.logprobs else None,
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
        """See `Dialect`."""
        return self._chunk(ChatChunkChoice(index=index, delta=Delta(role="assistant", content="")))

    def piece(self, index: int, text: str) -> ChatChunk:
        """See `Dialect`."""
        return self._chunk(ChatChunkChoice(index=index, delta=Delta(content=text)))

    def closing(self, index: int, answer: Answer, text: str) -> ChatChunk:
        """See `Dialect`."""
        choice = ChatChunkChoice(
            index=index,
            delta=Delta(content=text or None),
            logprobs=_chat_logprobs(answer.result) if self.logprobs else None,
            finish_reason=answer.result.finish_reason,
        )
        return self._chunk(choice).model_copy(update={"firstdraft": report_of(answer.job_id, answer.result)})

    def usage(self, answers: Sequence[Answer]) -> ChatChunk:
        """See `Dialect`."""
        return self._chunk().model_copy(update={"usage": usage_of(answers)})

    def _chunk(self, *choices: ChatChunkChoice) -> ChatChunk:
        return ChatChunk(id=self.id, created=self.created, model=self.model, choices=choices)


@dataclass(frozen=True)
class TextDialect:
    """`/v1/completions`."""

    id: str
    created: int
    model: str
    #: What comes before each choice's text: the prompt where it is to be echoed.
    echoed: Sequence[str] = ()
    num_prompts: int = 1
    #: Whether log-probabilities were asked for.
    logprobs: bool = False

    def whole(self, answers: Sequence[Answer]) -> TextCompletion:
        """See `Dialect`."""
        choices = tuple(
            self._choice(index, answer, self._echo(index) + answer.result.text) for index, answer in enumerate(answers)
        )
        completion = self._completion(*choices)
        return completion.model_copy(
            update={"usage": usage_of(answers, self.num_prompts), "firstdraft": choices[0].firstdraft}
        )

    def opening(self, index: int) -> TextCompletion | None:
        """See `Dialect`."""
        return self.piece(index, self._echo(index)) if self._echo(index) else None

    def piece(self, index: int, text: str) -> TextCompletion:
        """See `Dialect`."""
        return self._completion(TextChoice(index=index, text=text))

    def closing(self, index: int, answer: Answer, text: str) -> TextCompletion:
        """See `Dialect`."""
        return self._completion(self._choice(index, answer, text))

    def usage(self, answers: Sequence[Answer]) -> TextCompletion:
        """See `Dialect`."""
        return self._completion().model_copy(update={"usage": usage_of(answers, self.num_prompts)})

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

    def _completion(self, *choices: TextChoice) -> TextCompletion:
        return TextCompletion(id=self.id, created=self.created, model=self.model, choices=choices)


def usage_of(answers: Sequence[Answer], num_prompts: int = 1) -> TokenUsage:
    """Tokens of all choices; a prompt counts once however many choices it has."""
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
    """Prompt tokens that the answering tier's KV cache spared."""
    return result.usage.edge_cached_tokens if result.tier == Tier.EDGE else result.usage.cloud_cached_tokens


def chat_logprob(token: TokenLogprob) -> ChatLogprob:
    """One token's log-probabilities as OpenAI has them."""
    top = tuple(
        # OpenAI's word for a token that no bytes represent, as a control token, is null.
        TopLogprob(token=rival.token, logprob=rival.logprob, bytes=rival.bytes or None)
        for rival in token.top
    )
    return ChatLogprob(token=token.token, logprob=token.logprob, bytes=token.bytes, top_logprobs=top)


def _chat_logprobs(result: Result) -> ChatLogprobs | None:
    return ChatLogprobs(content=tuple(map(chat_logprob, result.logprobs))) if _has_logprobs(result) else None


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
        top_logprobs=tuple({_text_token(rival): rival.logprob for rival in token.top} for token in result.logprobs),
        text_offset=tuple(offsets),
    )


def _has_logprobs(result: Result) -> bool:
    """Whether they can be told: a remote cloud's may be missing. An empty answer has none, and that is all of them."""
    return bool(result.logprobs) or not result.text


def _text_token(token: RivalLogprob) -> str:
    """A token where only strings are told: one that is no whole characters by its bytes, as OpenAI spells it."""
    raw = bytes(token.bytes)
    try:
        return raw.decode() or token.token
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
