"""Answers of `/v1/chat/completions` and `/v1/completions`, whole and in chunks, as OpenAI defines them."""

from typing import Literal

from schemas.message import Wire
from schemas.openai_models import FirstdraftReport


class PromptDetails(Wire):
    """Kinds of prompt tokens."""

    #: Read from the answering tier's KV cache.
    cached_tokens: int = 0
    audio_tokens: int = 0


class CompletionDetails(Wire):
    """Kinds of completion tokens. The prediction is the edge's draft."""

    reasoning_tokens: int = 0
    audio_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


class TokenUsage(Wire):
    """Token counts over all choices; the prompt counts once."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


class TopLogprob(Wire):
    """One of the likeliest tokens at a position."""

    token: str
    logprob: float
    bytes: tuple[int, ...] | None


class ChatLogprob(TopLogprob):
    """One token of the answer, and the likeliest tokens at its position."""

    top_logprobs: tuple[TopLogprob, ...]


class ChatLogprobs(Wire):
    """The answer's tokens."""

    content: tuple[ChatLogprob, ...]
    refusal: None = None


class AssistantMessage(Wire):
    """The answer."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None
    annotations: tuple[()] = ()


class ChatChoice(Wire):
    """One answer."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: str
    firstdraft: FirstdraftReport


class ChatCompletion(Wire):
    """A whole chat completion. `firstdraft` is the first choice's."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: tuple[ChatChoice, ...]
    usage: TokenUsage
    system_fingerprint: None = None
    service_tier: None = None
    firstdraft: FirstdraftReport


class Delta(Wire):
    """The new part of a message."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChunkChoice(Wire):
    """The new part of one choice."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None


class ChatChunk(Wire):
    """A chunk of a chat completion. `firstdraft` comes with a choice's last chunk."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: tuple[ChatChunkChoice, ...]
    usage: TokenUsage | None = None
    system_fingerprint: None = None
    firstdraft: FirstdraftReport | None = None


class TextLogprobs(Wire):
    """The answer's tokens, as columns. Offsets count characters of the choice's text."""

    tokens: tuple[str, ...]
    token_logprobs: tuple[float, ...]
    top_logprobs: tuple[dict[str, float], ...]
    text_offset: tuple[int, ...]


class TextChoice(Wire):
    """One choice, or its new part."""

    index: int
    text: str
    logprobs: TextLogprobs | None = None
    finish_reason: str | None = None
    firstdraft: FirstdraftReport | None = None


class TextCompletion(Wire):
    """A whole text completion, or a chunk of one."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: tuple[TextChoice, ...]
    usage: TokenUsage | None = None
    system_fingerprint: None = None
    firstdraft: FirstdraftReport | None = None
