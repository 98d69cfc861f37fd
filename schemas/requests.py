"""A user's request (`JobRequest`), and the request that the gateway makes of it (`AcceptedRequest`).

The first may leave choices open. In the second every choice is made, so that no worker needs the gateway's
configuration.
"""

import hashlib
import json
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from schemas.json_schema import check_bounds
from schemas.message import Wire
from schemas.plain import check_plain
from schemas.policy import Policy

#: The most stop strings; each is searched for in every new piece of text.
MAX_STOP_STRINGS = 16
#: The most alternatives in a token's logprobs (OpenAI's own limit).
MAX_TOP_LOGPROBS = 20
#: A penalty nearer to 0 could make logits infinite, which engines compute in single precision.
LEAST_REPETITION_PENALTY = 0.01
#: The owner of requests without an API key.
ANONYMOUS = "anonymous"
#: The cache namespace of all requests where everybody shares cached prefixes.
EVERYBODYS_NAMESPACE = "all"
#: Bytes of a prompt that count as one token, before a tokenizer has read it.
BYTES_PER_TOKEN = 4

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
Weight = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
TrafficClass = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


class Message(Wire):
    """One turn of a conversation. Only an assistant's may be empty, as a model's answer can be."""

    role: Literal["system", "user", "assistant"]
    content: str

    @field_validator("content")
    @classmethod
    def _says_something(cls, value: str, others: ValidationInfo) -> str:
        if not value and others.data.get("role") != "assistant":
            raise ValueError("must not be empty")
        return value


class Sampling(Wire):
    """How tokens are sampled, on both tiers.

    Greedy unless `temperature` is above 0. Penalties and biases act before sampling, and not on the confidence figures,
    which come from the raw logits.
    """

    max_tokens: int = Field(256, ge=1, le=32_768)
    temperature: float = Field(0.0, ge=0.0, le=2.0)
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    #: 0 means all tokens.
    top_k: int = Field(0, ge=0, le=1_000)
    seed: int | None = Field(None, ge=0, le=2**31 - 1)
    stop: tuple[Annotated[str, Field(min_length=1, max_length=256)], ...] = Field((), max_length=MAX_STOP_STRINGS)
    #: Divides the logits of repeated tokens, or multiplies negative ones (CTRL's rule); 1 changes nothing.
    repetition_penalty: float = Field(1.0, ge=LEAST_REPETITION_PENALTY, le=2.0)
    frequency_penalty: float = Field(0.0, ge=-2.0, le=2.0)
    presence_penalty: float = Field(0.0, ge=-2.0, le=2.0)
    #: Added to the logits of these token ids. Every model that works on the request must have them.
    logit_bias: dict[TokenId, Annotated[float, Field(ge=-100.0, le=100.0)]] = Field({}, max_length=300)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=MAX_TOP_LOGPROBS)
    #: A GBNF grammar that the answer must match.
    grammar: str | None = Field(None, min_length=1, max_length=65_536)
    #: A JSON schema that the answer must match.
    json_schema: dict[str, Any] | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("top_logprobs")
    @classmethod
    def _has_logprobs(cls, value: int, others: ValidationInfo) -> int:
        if value and not others.data.get("logprobs", True):
            raise ValueError("top_logprobs needs logprobs, which is false")
        return value

    @field_validator("json_schema")
    @classmethod
    def _is_the_only_constraint(cls, value: dict[str, Any] | None, others: ValidationInfo) -> dict[str, Any] | None:
        if value is not None and others.data.get("grammar") is not None:
            raise ValueError("grammar and json_schema exclude each other")
        check_plain(value)
        if value is not None:
            check_bounds(value)
        return value

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0.0


class Pooling(StrEnum):
    """How a strategy's scores of all tokens become one number."""

    MEAN = "mean"
    #: exp of the mean log: the length-normalised sequence probability (Malinin and Gales, ICLR 2021).
    LOG_MEAN = "log_mean"
    #: A low quantile, so that a few bad tokens count even in a long answer (Gupta et al., ICLR 2024).
    QUANTILE = "quantile"
    MINIMUM = "minimum"


def split_member(name: str) -> tuple[str, str | None]:
    """The strategy that a member of an ensemble names, and its pooling, or None for the rule's own."""
    strategy, colon, pooling = name.partition(":")
    return strategy, pooling if colon else None


class ConfidenceRule(Wire):
    """How confident a draft must be to be the answer. `strategy` names an entry point (docs/architecture.md)."""

    strategy: str = Field("ensemble", min_length=1)
    #: The least confidence of a draft that is the answer.
    threshold: Probability = 0.5
    #: For `ensemble`: weight by member, which is `STRATEGY`, pooled as `pooling` says, or `STRATEGY:POOLING`. Weights
    #: are normalised to sum to 1, and 0 leaves a member out.
    weights: dict[str, Weight] = {}
    pooling: Pooling = Pooling.MEAN
    #: For `quantile`: which one.
    quantile: float = Field(0.1, gt=0.0, lt=1.0)
    #: The share of answers that may be drafts worse than the cloud's answer: the calibration's threshold for this risk
    #: is used in place of `threshold`, and without a calibration no draft is kept.
    max_risk: Probability | None = None
    #: The fields that the request itself stated. A calibration decides the others.
    stated: tuple[str, ...] = ()


class AcceptanceMode(StrEnum):
    """When the cloud accepts a draft token: `exact` is lossless; `threshold` is cheaper and not lossless."""

    EXACT = "exact"
    THRESHOLD = "threshold"


class AcceptanceRule(Wire):
    """When the cloud accepts a draft token."""

    mode: AcceptanceMode = AcceptanceMode.EXACT
    #: For `threshold`: accept a token with at least this share of the likeliest token's probability.
    threshold: Probability = 0.8


class ConfidenceOptions(BaseModel):
    """What a request may change of the configured confidence rule."""

    model_config = ConfigDict(extra="forbid")

    strategy: str | None = Field(None, min_length=1)
    threshold: Probability | None = None
    weights: dict[str, Weight] | None = Field(None, min_length=1)
    pooling: Pooling | None = None
    quantile: float | None = Field(None, gt=0.0, lt=1.0)
    #: Instead of a threshold: the share of answers that may be drafts worse than the cloud's answer.
    max_risk: Probability | None = None

    @field_validator("max_risk")
    @classmethod
    def _is_the_only_criterion(cls, value: float | None, others: ValidationInfo) -> float | None:
        if value is not None and others.data.get("threshold") is not None:
            raise ValueError("max_risk and threshold exclude each other")
        return value


class AcceptanceOptions(BaseModel):
    """What a request may change of the configured acceptance rule."""

    model_config = ConfigDict(extra="forbid")

    mode: AcceptanceMode | None = None
    threshold: Probability | None = None


def owners_namespace(owner: str) -> str:
    """The cache namespace of one owner's requests. Names have no colon, so that no two namespaces are the same."""
    return f"owner:{owner}"


def groups_namespace(group: str) -> str:
    """The cache namespace of requests whose keys have this cache group."""
    return f"group:{group}"


class JobRequest(Sampling):
    """The body of `POST /v1/jobs`. Exactly one of `prompt` (one user message) and `messages`."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {"required": ["prompt"], "properties": {"prompt": {"type": "string"}}},
                {"required": ["messages"], "properties": {"messages": {"type": "array"}}},
            ],
        }
    )

    prompt: str | None = Field(None, min_length=1)
    messages: tuple[Message, ...] | None = Field(None, validate_default=True)
    policy: str | None = Field(None, min_length=1)
    confidence: ConfidenceOptions | None = None
    acceptance: AcceptanceOptions | None = None
    #: The kind of traffic that the request belongs to, for which there may be a calibration of its own.
    traffic_class: TrafficClass | None = None
    #: Seconds after which the job fails if it has not finished; at most, and by default, `requests.deadline_s`.
    deadline_s: float | None = Field(None, gt=0.0, allow_inf_nan=False)
    #: An https address to which the job is sent when it has finished.
    webhook: str | None = Field(None, min_length=1, max_length=2048)

    @field_validator("messages")
    @classmethod
    def _is_the_only_prompt(
        cls, value: tuple[Message, ...] | None, others: ValidationInfo
    ) -> tuple[Message, ...] | None:
        if "prompt" in others.data and (value is None) == (others.data["prompt"] is None):
            raise ValueError("give exactly one of prompt and messages")
        if value == ():
            raise ValueError("there must be at least one message")
        if value is not None and value[-1].role == "assistant":
            raise ValueError("the last of messages must not be the assistant's: there would be nothing to answer")
        return value

    def conversation(self) -> tuple[Message, ...]:
        """The messages; `prompt` is one message of the user's."""
        if self.messages is not None:
            return self.messages
        assert self.prompt is not None
        return (Message(role="user", content=self.prompt),)

    def sampling(self) -> Sampling:
        """The part that the engines need."""
        return Sampling.model_validate({name: getattr(self, name) for name in Sampling.model_fields})


class AcceptedRequest(Wire):
    """A request with every choice made. The record in Redis has it; an RQ job has only its id."""

    request_id: str
    messages: tuple[Message, ...]
    sampling: Sampling
    policy: Policy
    confidence: ConfidenceRule
    acceptance: AcceptanceRule
    #: The kind of traffic, for which there may be a calibration of its own.
    traffic_class: TrafficClass | None = None
    #: Seconds since the epoch.
    accepted_at_s: float
    #: Data of the route that accepted the request, for the route alone.
    note: str = ""
    #: The owner of the API key that the request came with.
    owner: str = Field(ANONYMOUS, min_length=1)
    #: Only requests of the same namespace share cached prefixes: otherwise response times would tell what others have
    #: sent. By default it is the owner's. The gateway may set another one; nothing in the body can.
    cache_namespace: str = Field(default_factory=lambda fields: owners_namespace(fields["owner"]), min_length=1)
    #: The owner's share, relative to others', when the system is full.
    weight: float = Field(1.0, gt=0.0)
    #: Seconds from acceptance until the request fails if it has not finished.
    deadline_s: float = Field(gt=0.0)
    #: The address to call when it has finished.
    webhook: str | None = None

    @property
    def num_tokens_at_most(self) -> int:
        """An estimate of the most tokens that the request can cost: those of the prompt, and `max_tokens`."""
        num_bytes = sum(len(message.content.encode()) for message in self.messages)
        return num_bytes // BYTES_PER_TOKEN + self.sampling.max_tokens

    @property
    def prompt_digest(self) -> str:
        """SHA-256 of the messages and the sampling options, without `seed` and `max_tokens`."""
        messages = [[message.role, message.content] for message in self.messages]
        digested = [messages, self.sampling.model_dump(mode="json", exclude={"seed", "max_tokens"})]
        return hashlib.sha256(json.dumps(digested, sort_keys=True).encode()).hexdigest()
