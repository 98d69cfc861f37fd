"""What the OpenAPI document says beyond what flask-openapi3 reads off the routes: errors, tags, headers."""

from collections.abc import Iterable
from http import HTTPStatus
from importlib.metadata import version
from typing import Any

from flask_openapi3.models.info import Info
from flask_openapi3.models.tag import Tag
from pydantic import BaseModel

from schemas.openai_models import OpenAIError

INFO = Info(
    title="Firstdraft",
    version=version("firstdraft"),
    description="A small model drafts every answer; a large model verifies the drafts that should not be trusted.",
)

JOBS = Tag(name="jobs", description="Prompts as jobs: submit, wait, follow, cancel.")
OPENAI = Tag(name="openai", description="OpenAI's API, for clients that exist already.")
FILES = Tag(name="batches", description="Many requests from one file, OpenAI's Batch API.")
STATE = Tag(name="state", description="Whether the system works, and what it has done.")

#: A header of answers that ask the client to come again.
RETRY_AFTER = {"Retry-After": {"description": "Seconds to wait before asking again.", "schema": {"type": "string"}}}


#: How a key is given, where one is needed.
SECURITY: dict[str, Any] = {"api_key": {"type": "http", "scheme": "bearer", "description": "An API key, `fd_…`."}}
#: Errors that every route may answer: who asks is unknown, may not, or comes too often; what is asked is too much.
EVERYWHERE = (400, 401, 403, 413, 415, 429, 503)

#: A stream of server-sent events. As OpenAPI 3.1 has no word for a stream's items, the schema is that of one event.
EVENTS: dict[str, Any] = {
    "text/event-stream": {
        "schema": {
            "type": "object",
            "description": "One event of the stream; `data` is JSON, or `[DONE]` at the end of OpenAI's streams.",
            "properties": {name: {"type": "string"} for name in ("id", "event", "data")},
            "required": ["data"],
        }
    }
}
#: Routes that answer with a stream if asked to.
STREAMED_ON_REQUEST = (
    ("/v1/chat/completions", "post"),
    ("/v1/completions", "post"),
    ("/v1/responses", "post"),
    ("/v1/responses/{response_id}", "get"),
)
#: Bodies to begin with, by path.
EXAMPLES: dict[str, dict[str, Any]] = {
    "/v1/jobs": {"prompt": "Why is the sky blue?", "max_tokens": 64},
    "/v1/chat/completions": {
        "model": "firstdraft",
        "messages": [{"role": "user", "content": "Why is the sky blue?"}],
        "max_tokens": 64,
    },
    "/v1/completions": {"model": "firstdraft", "prompt": "Why is the sky blue?", "max_tokens": 64},
    "/v1/responses": {"model": "firstdraft", "input": "Why is the sky blue?", "max_output_tokens": 64},
}

#: Responses by status, as flask-openapi3 takes them.
Responses = dict[str | int | HTTPStatus, type[BaseModel] | dict[Any, Any] | None]


def problems(*statuses: int) -> Responses:
    """Responses that are problem documents, by status."""
    return {str(status): _problem(status) for status in statuses}


def openai_errors(*statuses: int) -> Responses:
    """Responses that are errors in OpenAI's form, by status; in place of the problem documents of all routes."""
    unused: Responses = {"422": {"description": "Not used here: what is not valid is 400."}}
    return {**unused, **{str(status): OpenAIError for status in (*EVERYWHERE, *statuses)}}


def complete(document: dict[str, Any], models: Iterable[str], policies: Iterable[str]) -> None:
    """Add to the document what the routes' types cannot say: names that may be given, examples, answers as streams."""
    schemas, paths = document["components"]["schemas"], document["paths"]
    for body in ("ChatCompletionRequest", "CompletionRequest", "ResponseRequest"):
        schemas[body]["properties"]["model"]["enum"] = list(models)
    policy = schemas["JobRequest"]["properties"]["policy"]
    policy["anyOf"] = [{"type": "string", "enum": list(policies)}, {"type": "null"}]
    for path, example in EXAMPLES.items():
        paths[path]["post"]["requestBody"]["content"]["application/json"]["example"] = example
    for path, method in STREAMED_ON_REQUEST:
        paths[path][method]["responses"]["200"]["content"] |= EVENTS


def event_stream(description: str) -> dict[str, Any]:
    """A response that is a stream of server-sent events."""
    return {"description": description, "content": EVENTS}


def _problem(status: int) -> dict[str, Any]:
    response: dict[str, Any] = {
        "description": HTTPStatus(status).phrase,
        "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    if status in {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}:
        response["headers"] = RETRY_AFTER
    return response
