"""Request bodies of `/v1/chat/completions` and `/v1/completions`, as OpenAI defines them."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from schemas.openai_models import FirstdraftOptions

#: The most choices of one request; each is a job of its own.
MAX_CHOICES = 16

Temperature = Annotated[float, Field(ge=0.0, le=2.0)]
TopP = Annotated[float, Field(gt=0.0, le=1.0)]
Penalty = Annotated[float, Field(ge=-2.0, le=2.0)]
Choices = Annotated[int, Field(ge=1, le=MAX_CHOICES)]
MaxTokens = Annotated[int, Field(ge=1)]


class TextPart(BaseModel):
    """A part of a message's content. Only text parts are accepted."""

    model_config = ConfigDict(extra="allow")

    type: str
    text: str | None = None


class ChatMessage(BaseModel):
    """One turn. `developer` means the same as `system`."""

    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | tuple[TextPart, ...] | None = None


class JsonSchemaFormat(BaseModel):
    """A schema that the answer must match. `strict` is always on."""

    model_config = ConfigDict(populate_by_name=True, extra="forbid")

    name: str | None = None
    description: str | None = None
    json_schema: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(BaseModel):
    """The form that the answer must have. Unknown fields are refused: an answer in another form would be wrong."""

    model_config = ConfigDict(populate_by_name=True, extra="forbid")

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None
    #: With `json_object`: a schema that the object must match, as llama.cpp's server and others accept it.
    object_schema: dict[str, Any] | None = Field(None, alias="schema")


class StreamOptions(BaseModel):
    """What a stream has besides text."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class CompletionOptions(BaseModel):
    """The options of both routes."""

    #: gateway/openai/options.py checks the others.
    model_config = ConfigDict(extra="allow")

    model: str
    max_tokens: MaxTokens | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    n: Choices | None = None
    stop: str | tuple[str, ...] | None = None
    seed: int | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: dict[str, float] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    firstdraft: FirstdraftOptions | None = None


class ChatCompletionRequest(CompletionOptions):
    """The body of `POST /v1/chat/completions`."""

    messages: tuple[ChatMessage, ...] = Field(min_length=1)
    max_completion_tokens: MaxTokens | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: ResponseFormat | None = None


class CompletionRequest(CompletionOptions):
    """The body of `POST /v1/completions`. A prompt is one message of the user's: both tiers are chat models."""

    prompt: str | tuple[Any, ...]
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=5)
