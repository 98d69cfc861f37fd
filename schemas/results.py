"""What became of a request: its answer with all that was measured on the way, or why there is none."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from schemas.message import Wire
from schemas.policy import Tier


class FinishReason(StrEnum):
    """Why a model stopped writing."""

    #: End of text, or a stop string.
    STOP = "stop"
    #: `max_tokens` or the model's context.
    LENGTH = "length"


class ConfidenceReport(Wire):
    """How sure the edge was, and of what the number is made."""

    value: float
    threshold: float
    strategy: str
    #: Score of each strategy that had a part in `value`.
    parts: dict[str, float] = {}
    sure: bool


class DraftStatistics(Wire):
    """What became of a draft's tokens."""

    drafted_tokens: int = 0
    #: Tokens of the draft that stand in the answer.
    accepted_tokens: int = 0
    #: Tokens of the answer that the cloud wrote itself.
    rewritten_tokens: int = 0
    #: accepted over drafted; absent where the draft was not verified.
    acceptance_rate: float | None = None
    verified: bool = False
    escalated_early: bool = False
    #: Forward passes of the cloud model, where it was used.
    cloud_steps: int | None = None
    #: Whether the answer is the cloud model's own, in distribution (not so in `threshold` mode).
    lossless: bool | None = None
    #: `threshold` mode: mean and largest shortfall of accepted tokens, in log-probability below the favourite.
    mean_shortfall: float | None = None
    max_shortfall: float | None = None
    #: Why a draft was not handed to the cloud engine, where that was so.
    not_verified_because: str | None = None


class Usage(Wire):
    """Tokens, in the answering model's vocabulary unless it says otherwise."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    edge_completion_tokens: int = 0
    cloud_completion_tokens: int = 0
    #: Prompt tokens that a KV cache spared on each tier.
    edge_cached_tokens: int = 0
    cloud_cached_tokens: int = 0


class Timings(Wire):
    """Milliseconds. Absent stages are 0."""

    queued_ms: float = 0.0
    drafting_ms: float = 0.0
    verify_queued_ms: float = 0.0
    verifying_ms: float = 0.0
    total_ms: float = 0.0


class Models(Wire):
    """Names of the models that had a part in the answer."""

    edge: str | None = None
    cloud: str | None = None


#: A token's bytes: a token may be a part of a character, which no string can hold.
TokenBytes = tuple[Annotated[int, Field(ge=0, le=255)], ...]


class RivalLogprob(Wire):
    """A token that could have been written, and its log-probability."""

    #: For people to read: what is no whole character is U+FFFD, and a control token is spelled out.
    token: str
    #: What the token adds to a text; nothing for a control token.
    bytes: TokenBytes
    token_id: int
    logprob: float


class TokenLogprob(RivalLogprob):
    """A token of the answer's text, its log-probability, and those of its likeliest rivals.

    An answer has one for each token with a part in its text; their `bytes` in a row are the text in UTF-8. Of a token
    of which a stop string cut a part off, `token` and `bytes` are the part that stands, the others the whole token's.
    """

    top: tuple[RivalLogprob, ...] = ()


class Result(Wire):
    """The answer."""

    text: str
    finish_reason: FinishReason
    tier: Tier
    policy: str
    confidence: ConfidenceReport | None = None
    draft: DraftStatistics | None = None
    usage: Usage
    timings: Timings = Timings()
    models: Models
    logprobs: tuple[TokenLogprob, ...] = ()


class FailureKind(StrEnum):
    """Why a request ended without an answer."""

    #: The prompt does not fit the model's context.
    PROMPT_TOO_LONG = "prompt_too_long"
    #: An option that this model or engine cannot honour.
    UNSUPPORTED_OPTION = "unsupported_option"
    #: The engine gave an error for this request.
    ENGINE_ERROR = "engine_error"
    #: Something of Firstdraft's own failed around the engine.
    INTERNAL_ERROR = "internal_error"
    #: Every attempt ended with its worker.
    ATTEMPTS_EXHAUSTED = "attempts_exhausted"
    #: The request's deadline came first.
    DEADLINE_EXCEEDED = "deadline_exceeded"


class LostAttempt(Wire):
    """An attempt at a request that ended with its worker."""

    attempt: int
    tier: Tier
    worker: str
    reason: str
    #: Seconds since the epoch, by Redis's clock.
    lost_at_s: float
    #: Whether the worker worked on nothing else from its beginning to its end.
    alone: bool = False


class LostAttempts(Wire):
    """All of a request's, in order."""

    attempts: tuple[LostAttempt, ...] = ()


class Failure(Wire):
    """A failure as data: it crosses processes, an exception does not."""

    kind: FailureKind
    tier: Tier | None = None
    message: str = Field(min_length=1)
    #: What was tried, where that is why it failed.
    attempts: tuple[LostAttempt, ...] = ()
