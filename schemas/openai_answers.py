"""What `/v1/chat/completions` and `/v1/completions` answer, whole and in chunks, as OpenAI defines it."""

from typing import Literal

from schemas.message import Wire
from schemas.openai_models import FirstdraftReport


class PromptDetails(Wire):
    """Of the prompt's tokens."""

    #: Spared by the answering tier's KV cache.
    cached_tokens: int = 0
    audio_tokens: int = 0


class CompletionDetails(Wire):
    """Of the answer's tokens. The prediction is the edge's draft."""

    reasoning_tokens: int = 0
    audio_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


class TokenUsage(Wire):
    """Tokens of the answering models, over all choices; the prompt counts once."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


class TopLogprob(Wire):
    """A likely token."""

    token: str
    logprob: float
    bytes: tuple[int, ...] | None


class ChatLogprob(TopLogprob):
    """One token of the answer and its rivals."""

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
    """What is new."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChunkChoice(Wire):
    """What is new of one answer."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None


class ChatChunk(Wire):
    """A piece of a chat completion. `firstdraft` comes with a choice's last piece."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: tuple[ChatChunkChoice, ...]
    usage: TokenUsage | None = None
    system_fingerprint: None = None
    firstdraft: FirstdraftReport | None = None


class TextLogprobs(Wire):
    """The answer's tokens, in columns. Offsets are characters of the choice's text."""

    tokens: tuple[str, ...]
    token_logprobs: tuple[float, ...]
    top_logprobs: tuple[dict[str, float], ...]
    text_offset: tuple[int, ...]


class TextChoice(Wire):
    """One answer, or what is new of it."""

    index: int
    text: str
    logprobs: TextLogprobs | None = None
    finish_reason: str | None = None
    firstdraft: FirstdraftReport | None = None


class TextCompletion(Wire):
    """A whole text completion, or a piece of one."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: tuple[TextChoice, ...]
    usage: TokenUsage | None = None
    system_fingerprint: None = None
    firstdraft: FirstdraftReport | None = None
