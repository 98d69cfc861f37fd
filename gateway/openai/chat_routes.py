"""/v1/chat/completions, /v1/completions and /v1/models, for clients of OpenAI's API."""

from flask import Response
from flask_openapi3.openapi import OpenAPI
from pydantic import BaseModel, Field

from gateway.http.idempotency import IdempotencyHeader
from gateway.http.openapi import OPENAI, openai_errors
from gateway.jobs.answers import json_answer
from gateway.openai.models import ModelTable
from gateway.openai.serving import answer_in_pieces, answer_whole
from gateway.openai.shapes import ChatDialect, TextDialect
from gateway.openai.translation import chat_jobs, completion_jobs, prompts_of
from gateway.services import Services
from schemas.openai_answers import ChatCompletion, TextCompletion
from schemas.openai_chat import ChatCompletionRequest, CompletionRequest
from schemas.openai_models import Model, ModelList
from schemas.requests import AcceptedRequest


class ModelPath(BaseModel):
    """Which model."""

    model: str = Field(description="A name that GET /v1/models lists.")


def add(app: OpenAPI, services: Services) -> None:
    """Add the routes."""
    models = ModelTable(services.admission.policies, services.settings.model_aliases)

    @app.post("/v1/chat/completions", tags=[OPENAI], responses={200: ChatCompletion, **openai_errors(404, 410, 422)})
    def chat(header: IdempotencyHeader, body: ChatCompletionRequest) -> Response:
        """Answer a conversation, whole or as a stream of text that will stand."""
        jobs = chat_jobs(body, models.policy(body.model))

        def dialect(first: AcceptedRequest) -> ChatDialect:
            return ChatDialect(
                f"chatcmpl-{first.request_id}", int(first.accepted_at_s), body.model, logprobs=first.sampling.logprobs
            )

        if body.stream:
            usage = bool(body.stream_options and body.stream_options.include_usage)
            return answer_in_pieces(services, jobs, dialect, include_usage=usage, key=header.of_json())
        return answer_whole(services, jobs, dialect, key=header.of_json())

    @app.post("/v1/completions", tags=[OPENAI], responses={200: TextCompletion, **openai_errors(404, 410, 422)})
    def complete(header: IdempotencyHeader, body: CompletionRequest) -> Response:
        """Answer one or more prompts, each as one message of a user's."""
        jobs = completion_jobs(body, models.policy(body.model))
        prompts = prompts_of(body)
        echoed = [prompt for prompt in prompts for _ in range(body.n or 1)] if body.echo else []

        def dialect(first: AcceptedRequest) -> TextDialect:
            return TextDialect(
                f"cmpl-{first.request_id}",
                int(first.accepted_at_s),
                body.model,
                tuple(echoed),
                len(prompts),
                logprobs=first.sampling.logprobs,
            )

        if body.stream:
            usage = bool(body.stream_options and body.stream_options.include_usage)
            return answer_in_pieces(services, jobs, dialect, include_usage=usage, key=header.of_json())
        return answer_whole(services, jobs, dialect, key=header.of_json())

    @app.get("/v1/models", tags=[OPENAI], responses={200: ModelList})
    def list_models() -> Response:
        """The model names, one for each policy."""
        return json_answer(models.listed())

    @app.get("/v1/models/<path:model>", tags=[OPENAI], responses={200: Model, **openai_errors(404)})
    def read_model(path: ModelPath) -> Response:
        """One of them."""
        return json_answer(models.model(path.model))
