"""What a user asks for (`JobRequest`) and what the gateway makes of it (`AcceptedRequest`).

The first is forgiving about what is left out; in the second every choice is made, so that no worker needs the
gateway's configuration.
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

#: The most stop strings a request may name; each costs a search in every new piece of text.
MAX_STOP_STRINGS = 16
#: The most alternatives a token's logprobs may list (OpenAI's own limit).
MAX_TOP_LOGPROBS = 20
#: Penalties nearer to 0 would make infinities of logits, which engines compute in single precision.
LEAST_REPETITION_PENALTY = 0.01
#: The owner of requests that came without an API key.
ANONYMOUS = "anonymous"
#: The cache namespace of all requests, where everybody shares cached prefixes.
EVERYBODYS_NAMESPACE = "all"
#: Bytes of a prompt that are counted as one token before any tokenizer has seen it.
BYTES_PER_TOKEN = 4

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
Weight = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


class Message(Wire):
    """One turn of a conversation. Only an assistant's may be empty: a model may have had nothing to say."""

    role: Literal["system", "user", "assistant"]
    content: str

    @field_validator("content")
    @classmethod
    def _says_something(cls, value: str, others: ValidationInfo) -> str:
        if not value and others.data.get("role") != "assistant":
            raise ValueError("must not be empty")
        return value


class Sampling(Wire):
    """How tokens are chosen, on both tiers alike.

    Greedy unless `temperature` is above 0. Penalties and biases act before sampling and never on confidence
    figures, which are taken from the raw logits.
    """

    max_tokens: int = Field(256, ge=1, le=32_768)
    temperature: float = Field(0.0, ge=0.0, le=2.0)
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    #: 0 considers every token.
    top_k: int = Field(0, ge=0, le=1_000)
    seed: int | None = Field(None, ge=0, le=2**31 - 1)
    stop: tuple[Annotated[str, Field(min_length=1, max_length=256)], ...] = Field((), max_length=MAX_STOP_STRINGS)
    #: 1 leaves repeated tokens alone; above 1 divides (or multiplies, if negative) their logits (CTRL's rule).
    repetition_penalty: float = Field(1.0, ge=LEAST_REPETITION_PENALTY, le=2.0)
    frequency_penalty: float = Field(0.0, ge=-2.0, le=2.0)
    presence_penalty: float = Field(0.0, ge=-2.0, le=2.0)
    #: Added to the logits of these token ids, which each model that works on the request must have.
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
        """Whether the most likely token is always taken."""
        return self.temperature == 0.0


class Pooling(StrEnum):
    """How a strategy makes one number of its figures per token."""

    MEAN = "mean"
    #: exp of the mean log: the length-normalised sequence probability (Malinin and Gales, ICLR 2021).
    LOG_MEAN = "log_mean"
    #: A low quantile: one bad token counts however long the answer is (Gupta et al., ICLR 2024).
    QUANTILE = "quantile"
    MINIMUM = "minimum"


class ConfidenceRule(Wire):
    """How sure a draft must be to be the answer. `strategy` names an entry of the registry (docs/architecture.md)."""

    strategy: str = Field("ensemble", min_length=1)
    #: A draft whose confidence is at least this is the answer.
    threshold: Probability = 0.5
    #: For `ensemble`: strategy to weight; weights are normalised to sum 1, and 0 leaves a strategy out.
    weights: dict[str, Weight] = {}
    pooling: Pooling = Pooling.MEAN
    #: For `quantile`: which one.
    quantile: float = Field(0.1, gt=0.0, lt=1.0)


class AcceptanceMode(StrEnum):
    """When a draft token stands: as in design `exact` (lossless) or `threshold` (cheaper, not lossless)."""

    EXACT = "exact"
    THRESHOLD = "threshold"


class AcceptanceRule(Wire):
    """When the cloud lets a draft token stand."""

    mode: AcceptanceMode = AcceptanceMode.EXACT
    #: For `threshold`: a token stands if it has at least this share of the probability of the cloud's favourite.
    threshold: Probability = 0.8


class ConfidenceOptions(BaseModel):
    """What a request may change of the configured confidence rule."""

    model_config = ConfigDict(extra="forbid")

    strategy: str | None = Field(None, min_length=1)
    threshold: Probability | None = None
    weights: dict[str, Weight] | None = Field(None, min_length=1)
    pooling: Pooling | None = None
    quantile: float | None = Field(None, gt=0.0, lt=1.0)


class AcceptanceOptions(BaseModel):
    """What a request may change of the configured acceptance rule."""

    model_config = ConfigDict(extra="forbid")

    mode: AcceptanceMode | None = None
    threshold: Probability | None = None


def owners_namespace(owner: str) -> str:
    """The cache namespace of one owner's requests. No owner's name holds a colon, so no two namespaces are alike."""
    return f"owner:{owner}"


def groups_namespace(group: str) -> str:
    """The cache namespace of the requests of all keys that were made with this cache group."""
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
    #: Seconds after which the job fails if it has not finished; at most, and by default, `requests.deadline_s`.
    deadline_s: float | None = Field(None, gt=0.0, allow_inf_nan=False)
    #: An https address that is called with the job when it has finished.
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
        """The messages, a lone `prompt` being one of the user's."""
        if self.messages is not None:
            return self.messages
        assert self.prompt is not None
        return (Message(role="user", content=self.prompt),)

    def sampling(self) -> Sampling:
        """The part that the engines need."""
        return Sampling.model_validate({name: getattr(self, name) for name in Sampling.model_fields})


class AcceptedRequest(Wire):
    """A request with every choice made. The record in Redis holds it; an RQ job holds only its id."""

    request_id: str
    messages: tuple[Message, ...]
    sampling: Sampling
    policy: Policy
    confidence: ConfidenceRule
    acceptance: AcceptanceRule
    #: Seconds since the epoch.
    accepted_at_s: float
    #: What the route that accepted it needs to describe it again; nobody else reads it.
    note: str = ""
    #: Whose it is: the owner of the API key that it came with.
    owner: str = Field(ANONYMOUS, min_length=1)
    #: Only requests of the same namespace share cached prefixes: all else would tell who has sent what before. The
    #: owner's own unless the gateway says otherwise, and never anything that the request's body says.
    cache_namespace: str = Field(default_factory=lambda told: owners_namespace(told["owner"]), min_length=1)
    #: The owner's share beside others' where there is not enough for all.
    weight: float = Field(1.0, gt=0.0)
    #: Seconds after acceptance at which it fails if it has not finished.
    deadline_s: float = Field(gt=0.0)
    #: The address to call when it has finished.
    webhook: str | None = None

    @property
    def num_tokens_at_most(self) -> int:
        """About the most tokens that it can cost: four bytes of prompt are one, and the longest answer is written."""
        num_bytes = sum(len(message.content.encode()) for message in self.messages)
        return num_bytes // BYTES_PER_TOKEN + self.sampling.max_tokens

    @property
    def prompt_digest(self) -> str:
        """SHA-256 of what an engine is given of the request, but for the seed and the length of the answer."""
        told = [[message.role, message.content] for message in self.messages]
        given = [told, self.sampling.model_dump(mode="json", exclude={"seed", "max_tokens"})]
        return hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()
