"""What the OpenAPI document says beyond what flask-openapi3 takes from the routes: errors, tags, headers."""

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

#: The header of answers to which a client should ask again.
RETRY_AFTER = {"Retry-After": {"description": "Seconds to wait before asking again.", "schema": {"type": "string"}}}
#: How a key is given, where one is needed.
SECURITY: dict[str, Any] = {"api_key": {"type": "http", "scheme": "bearer", "description": "An API key, `fd_…`."}}
#: Statuses that every route may answer with: bad key, missing scope, too many requests, too large a body and so on.
EVERYWHERE = (400, 401, 403, 413, 415, 429, 503)

#: A stream of server-sent events. OpenAPI 3.1 cannot describe a stream's items; the schema is that of one event.
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
#: Routes that stream if asked to.
STREAMED_ON_REQUEST = (
    ("/v1/chat/completions", "post"),
    ("/v1/completions", "post"),
    ("/v1/responses", "post"),
    ("/v1/responses/{response_id}", "get"),
)
#: Example bodies, by path.
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

#: Documented responses by status, as flask-openapi3 takes them.
Responses = dict[str | int | HTTPStatus, type[BaseModel] | dict[Any, Any] | None]


def problems(*statuses: int) -> Responses:
    """The documentation of problem documents with these statuses."""
    return {str(status): _problem(status) for status in statuses}


def openai_errors(*statuses: int) -> Responses:
    """The documentation of errors in OpenAI's form, for the statuses of all routes and these."""
    unused: Responses = {"422": {"description": "Not used here: what is not valid is 400."}}
    return {**unused, **{str(status): OpenAIError for status in (*EVERYWHERE, *statuses)}}


def complete(document: dict[str, Any], models: Iterable[str], policies: Iterable[str]) -> None:
    """Add what the routes' types cannot say: the names of models and policies, examples, answers as streams."""
    schemas, paths = document["components"]["schemas"], document["paths"]
    for body in ("ChatCompletionRequest", "CompletionRequest", "ResponseRequest"):
        schemas[body]["properties"]["model"]["enum"] = list(models)
    policy = schemas["JobRequest"]["properties"]["policy"]
    policy["anyOf"] = [{"type": "string", "enum": list(policies)}, {"type": "null"}]
    for path, example in EXAMPLES.items():
        paths[path]["post"]["requestBody"]["content"]["application/json"]["example"] = example
    for path, method in STREAMED_ON_REQUEST:
        paths[path][method]["responses"]["200"]["content"] |= EVENTS


def event_stream_document(description: str) -> dict[str, Any]:
    """The documentation of a stream of server-sent events."""
    return {"description": description, "content": EVENTS}


def _problem(status: int) -> dict[str, Any]:
    response: dict[str, Any] = {
        "description": HTTPStatus(status).phrase,
        "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    if status in {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}:
        response["headers"] = RETRY_AFTER
    return response
