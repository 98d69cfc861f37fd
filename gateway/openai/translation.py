"""From OpenAI's bodies to Firstdraft's requests, one for each choice. Pure; raises `Refused`."""

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from gateway.http.errors import dotted
from gateway.jobs.request_validation import Refused
from gateway.openai.options import check_others
from schemas.openai_chat import ChatCompletionRequest, ChatMessage, CompletionOptions, CompletionRequest, ResponseFormat
from schemas.requests import JobRequest

#: Our seeds have 31 bits; OpenAI's may be any integer.
NUM_SEEDS = 2**31
#: OpenAI's own default for `/v1/completions`.
COMPLETION_MAX_TOKENS = 16
#: The schema of `{"type": "json_object"}`.
ANY_OBJECT = {"type": "object"}


def chat_jobs(body: ChatCompletionRequest, policy: str | None) -> list[JobRequest]:
    """The jobs of a chat completion, one for each choice."""
    check_others(body.model_extra or {})
    fields = {
        **_shared(body, policy),
        "messages": conversation(body.messages),
        "max_tokens": body.max_completion_tokens or body.max_tokens,
        "logprobs": body.logprobs,
        "top_logprobs": body.top_logprobs,
        "json_schema": _response_schema(body.response_format),
    }
    return _choices(fields, body.n or 1)


def completion_jobs(body: CompletionRequest, policy: str | None) -> list[JobRequest]:
    """The jobs of a text completion: `n` in a row for each prompt."""
    check_others(body.model_extra or {})
    jobs = []
    for prompt in prompts_of(body):
        fields = {
            **_shared(body, policy),
            "prompt": prompt,
            "max_tokens": body.max_tokens or COMPLETION_MAX_TOKENS,
            "logprobs": body.logprobs is not None,
            "top_logprobs": body.logprobs or 0,
        }
        jobs += _choices(fields, body.n or 1)
    return jobs


def prompts_of(body: CompletionRequest) -> list[str]:
    """The prompts as text. Raises `Refused` for token ids, which differ between the models."""
    prompts = [body.prompt] if isinstance(body.prompt, str) else list(body.prompt)
    if not prompts or not all(isinstance(prompt, str) for prompt in prompts):
        raise Refused("prompt", body.prompt, "must be a string or a list of strings")
    return prompts


def conversation(messages: Sequence[ChatMessage]) -> list[dict[str, str]]:
    """The messages with Firstdraft's roles, as text."""
    turns = []
    for index, message in enumerate(messages):
        if message.role in {"tool", "function"}:
            raise Refused(f"messages.{index}.role", message.role, "there are no tools here")
        role = "system" if message.role == "developer" else message.role
        turns.append({"role": role, "content": _text(message, index)})
    return turns


def schema_of(kind: str, schema: dict[str, Any] | None, field: str) -> dict[str, Any] | None:
    """The JSON schema that an answer in this kind of format must match, if any.

    Raises `Refused`, naming the `field` of the schema, where the kind needs a schema or takes none.
    """
    if kind == "json_object":
        return {**ANY_OBJECT, **(schema or {})}
    if kind == "text" and schema is not None:
        raise Refused(field, schema, "text has none")
    if kind == "json_schema" and schema is None:
        raise Refused(field, None, "is needed where the type is json_schema")
    return schema


def as_job(fields: dict[str, Any]) -> JobRequest:
    """The request with those fields that are not None. Raises `Refused` for the first invalid field."""
    try:
        return JobRequest.model_validate({name: value for name, value in fields.items() if value is not None})
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        raise Refused(dotted(first["loc"]) or "body", first["input"], first["msg"]) from error


def _response_schema(wanted: ResponseFormat | None) -> dict[str, Any] | None:
    if wanted is None:
        return None
    if wanted.object_schema is not None and wanted.type != "json_object":
        raise Refused("response_format.schema", wanted.object_schema, f"{wanted.type} has none there")
    if wanted.json_schema is not None and wanted.type == "json_object":
        raise Refused("response_format.json_schema", wanted.json_schema.json_schema, "json_object has none")
    schema = wanted.json_schema.json_schema if wanted.json_schema else wanted.object_schema
    return schema_of(wanted.type, schema, "response_format.json_schema")


def _shared(body: CompletionOptions, policy: str | None) -> dict[str, Any]:
    return {
        "policy": policy,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "seed": body.seed,
        "stop": body.stop,
        "frequency_penalty": body.frequency_penalty,
        "presence_penalty": body.presence_penalty,
        "logit_bias": body.logit_bias,
        **(body.firstdraft.given() if body.firstdraft else {}),
    }


def _choices(fields: dict[str, Any], num: int) -> list[JobRequest]:
    """The same request `num` times. A seed is increased for each, or all answers would be the same."""
    seed = fields["seed"]
    seeds = [None if seed is None else (seed + choice) % NUM_SEEDS for choice in range(num)]
    return [as_job({**fields, "seed": choice_seed}) for choice_seed in seeds]


def _text(message: ChatMessage, index: int) -> str:
    if isinstance(message.content, str):
        return message.content
    parts = message.content or ()
    for part in parts:
        if part.text is None:
            raise Refused(f"messages.{index}.content", part.type, "only text can be read")
    return "".join(part.text or "" for part in parts)
