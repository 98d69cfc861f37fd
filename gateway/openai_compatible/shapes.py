"""Results as OpenAI's objects and chunks. Pure.

A dialect is one route's way of saying the same: a whole answer, or pieces of one.
"""

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
from schemas.results import Result, TokenLogprob
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

    def whole(self, answers: Sequence[Answer]) -> ChatCompletion:
        """See `Dialect`."""
        choices = tuple(
            ChatChoice(
                index=index,
                message=AssistantMessage(content=answer.result.text),
                logprobs=_chat_logprobs(answer.result.logprobs),
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
            logprobs=_chat_logprobs(answer.result.logprobs),
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
            logprobs=_text_logprobs(answer.result.logprobs, len(self._echo(index))),
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
    top = tuple(TopLogprob(token=text, logprob=value, bytes=tuple(text.encode())) for text, value in token.top)
    return ChatLogprob(token=token.token, logprob=token.logprob, bytes=tuple(token.token.encode()), top_logprobs=top)


def _chat_logprobs(tokens: Sequence[TokenLogprob]) -> ChatLogprobs | None:
    return ChatLogprobs(content=tuple(chat_logprob(token) for token in tokens)) if tokens else None


def _text_logprobs(tokens: Sequence[TokenLogprob], offset: int) -> TextLogprobs | None:
    if not tokens:
        return None
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.token)
    return TextLogprobs(
        tokens=tuple(token.token for token in tokens),
        token_logprobs=tuple(token.logprob for token in tokens),
        top_logprobs=tuple(dict(token.top) for token in tokens),
        text_offset=tuple(offsets),
    )
