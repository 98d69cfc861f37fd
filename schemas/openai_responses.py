"""Request bodies and answers of `/v1/responses`, as OpenAI defines them."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from schemas.message import Wire
from schemas.openai_answers import ChatLogprob
from schemas.openai_chat import MaxTokens, Temperature, TextPart, TopP
from schemas.openai_models import FirstdraftOptions, FirstdraftReport, ListItem, ListPage


class InputItem(BaseModel):
    """A turn of the conversation so far."""

    model_config = ConfigDict(extra="allow")

    type: str = "message"
    role: str = ""
    content: str | tuple[TextPart, ...] = ""


class TextFormat(BaseModel):
    """The form that the answer must have."""

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True, extra="forbid")

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str | None = None
    description: str | None = None
    json_schema: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class TextOptions(BaseModel):
    """How the answer is written."""

    format: TextFormat = TextFormat()
    verbosity: str | None = None


class ResponseRequest(BaseModel):
    """The body of `POST /v1/responses`."""

    #: gateway/openai/options.py checks the others.
    model_config = ConfigDict(extra="allow")

    model: str
    input: str | tuple[InputItem, ...]
    instructions: str | None = None
    previous_response_id: str | None = None
    max_output_tokens: MaxTokens | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    text: TextOptions | None = None
    include: tuple[str, ...] | None = None
    background: bool | None = None
    stream: bool | None = None
    store: bool | None = None
    metadata: dict[str, str] | None = None
    firstdraft: FirstdraftOptions | None = None


class ResponseNote(Wire):
    """What a response repeats of its body and the job's record does not have. Kept in `AcceptedRequest.note`."""

    model: str
    instructions: str | None
    previous_response_id: str | None
    background: bool
    store: bool
    metadata: dict[str, str]
    text_format: dict[str, Any]


class OutputText(Wire):
    """The answer's text."""

    type: Literal["output_text"] = "output_text"
    text: str
    annotations: tuple[()] = ()
    logprobs: tuple[ChatLogprob, ...] = ()


class OutputMessage(ListItem):
    """The answer."""

    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    status: Literal["in_progress", "completed", "incomplete"]
    content: tuple[OutputText, ...]


class InputText(Wire):
    """The text of a turn."""

    type: Literal["input_text"] = "input_text"
    text: str


class InputMessage(ListItem):
    """A turn of the conversation that the model did not write."""

    type: Literal["message"] = "message"
    role: Literal["user", "system"]
    status: Literal["completed"] = "completed"
    content: tuple[InputText, ...]


class InputItemList(ListPage[InputMessage | OutputMessage]):
    """One page of the turns that a response answers."""


class ResponseDeleted(Wire):
    """The response is gone."""

    id: str
    object: Literal["response"] = "response"
    deleted: bool = True


class InputDetails(Wire):
    """How many of the prompt's tokens came from a KV cache."""

    cached_tokens: int
    cache_write_tokens: int = 0


class OutputDetails(Wire):
    """How many of the answer's tokens were not shown."""

    reasoning_tokens: int = 0


class ResponseUsage(Wire):
    """Token counts of the answering model."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class ResponseError(Wire):
    """Why there is no answer."""

    code: str
    message: str


class IncompleteDetails(Wire):
    """Why the answer is incomplete."""

    reason: Literal["max_output_tokens"] = "max_output_tokens"


class TextConfig(Wire):
    """The form that was asked for."""

    format: dict[str, Any]


class Reasoning(Wire):
    """Always empty: neither model reasons before it answers."""

    effort: None = None
    summary: None = None


class Response(Wire):
    """A response, finished or not."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    completed_at: int | None = None
    status: Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
    background: bool
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int
    metadata: dict[str, str]
    model: str
    output: tuple[OutputMessage, ...] = ()
    parallel_tool_calls: bool = False
    previous_response_id: str | None
    reasoning: Reasoning = Reasoning()
    store: bool
    temperature: float
    text: TextConfig
    tool_choice: Literal["none"] = "none"
    tools: tuple[()] = ()
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"] = "disabled"
    usage: ResponseUsage | None = None
    user: None = None
    firstdraft: FirstdraftReport | None = None


class ResponseEvent(Wire):
    """One event of a response's stream. Its type decides which fields it has."""

    type: str
    sequence_number: int
    response: Response | None = None
    output_index: int | None = None
    content_index: int | None = None
    item_id: str | None = None
    item: OutputMessage | None = None
    part: OutputText | None = None
    delta: str | None = None
    text: str | None = None
    logprobs: tuple[ChatLogprob, ...] | None = None
    code: str | None = None
    message: str | None = None
    param: str | None = None
