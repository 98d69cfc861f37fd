"""The end of a request: its answer with what was measured on the way, or the reason why there is none."""

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
    """The confidence of a draft, and the scores that it is made of."""

    value: float
    #: Above 1: no draft is kept.
    threshold: float
    strategy: str
    #: The score of each member in `value`.
    parts: dict[str, float] = {}
    sure: bool
    #: The probability that the draft is as good as the cloud's answer; null without a calibration.
    probability: float | None = None
    #: The version of the calibration that was used; null without one.
    calibration: int | None = None


class DraftStatistics(Wire):
    """What became of a draft's tokens."""

    drafted_tokens: int = 0
    #: Tokens of the draft that the cloud accepted.
    accepted_tokens: int = 0
    #: Tokens of the answer that the cloud wrote itself.
    rewritten_tokens: int = 0
    #: Accepted over drafted tokens; null where the draft was not verified.
    acceptance_rate: float | None = None
    verified: bool = False
    escalated_early: bool = False
    #: Forward passes of the cloud model; null where it was not used.
    cloud_steps: int | None = None
    #: Whether the answer has the distribution of the cloud model's own (not in `threshold` mode).
    lossless: bool | None = None
    #: `threshold` mode: how far accepted tokens are below the likeliest, in log-probability: mean and maximum.
    mean_shortfall: float | None = None
    max_shortfall: float | None = None
    #: Why the draft was not given to the cloud engine, if it was not.
    not_verified_because: str | None = None


class Usage(Wire):
    """Token counts, in the answering model's vocabulary unless a name says otherwise."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    edge_completion_tokens: int = 0
    cloud_completion_tokens: int = 0
    #: Prompt tokens that each tier read from its KV cache.
    edge_cached_tokens: int = 0
    cloud_cached_tokens: int = 0


class Timings(Wire):
    """Milliseconds in each stage; 0 for stages that did not happen."""

    queued_ms: float = 0.0
    drafting_ms: float = 0.0
    verify_queued_ms: float = 0.0
    verifying_ms: float = 0.0
    total_ms: float = 0.0


class Models(Wire):
    """Names of the models that worked on the answer."""

    edge: str | None = None
    cloud: str | None = None


#: A token's bytes. A token may be a part of a character, which a string cannot hold.
TokenBytes = tuple[Annotated[int, Field(ge=0, le=255)], ...]


class RivalLogprob(Wire):
    """A token that could have been written, and its log-probability."""

    #: For people to read: incomplete characters are U+FFFD, and control tokens are spelled out.
    token: str
    #: What the token adds to the text; empty for a control token.
    bytes: TokenBytes
    token_id: int
    logprob: float


class TokenLogprob(RivalLogprob):
    """A token of the answer's text, its log-probability, and those of the likeliest alternatives.

    An answer has one for each token in its text; their `bytes` joined are the text in UTF-8. If a stop string cut off a
    part of a token, `token` and `bytes` are the rest of it, and the other fields the whole token's.
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
    #: An option that the model or engine does not support.
    UNSUPPORTED_OPTION = "unsupported_option"
    #: The engine failed on this request.
    ENGINE_ERROR = "engine_error"
    #: Firstdraft failed around the engine.
    INTERNAL_ERROR = "internal_error"
    #: Every attempt's worker was lost.
    ATTEMPTS_EXHAUSTED = "attempts_exhausted"
    #: The request's deadline came first.
    DEADLINE_EXCEEDED = "deadline_exceeded"


class LostAttempt(Wire):
    """An attempt at a request whose worker was lost."""

    attempt: int
    tier: Tier
    worker: str
    reason: str
    #: Seconds since the epoch, by Redis's clock.
    lost_at_s: float
    #: Whether the worker worked on nothing else during the whole attempt.
    alone: bool = False


class LostAttempts(Wire):
    """All lost attempts of a request, in order."""

    attempts: tuple[LostAttempt, ...] = ()


class Failure(Wire):
    """Why a request failed. A failure is data, since it crosses processes."""

    kind: FailureKind
    tier: Tier | None = None
    message: str = Field(min_length=1)
    #: The lost attempts, if they are the reason.
    attempts: tuple[LostAttempt, ...] = ()
