"""/v1/chat/completions, /v1/completions and /v1/models, for clients of OpenAI's API."""

from flask import Response
from flask_openapi3.openapi import OpenAPI
from pydantic import BaseModel, Field

from gateway.http.answers import json_answer
from gateway.http.idempotency import IdempotencyHeader
from gateway.http.openapi import OPENAI, openai_errors
from gateway.jobs.submission import submit_all
from gateway.openai.serving import Jobs, answer
from gateway.openai.shapes import ChatDialect, TextDialect
from gateway.openai.translation import chat_jobs, completion_jobs
from gateway.services import Services
from schemas.openai_answers import ChatCompletion, TextCompletion
from schemas.openai_chat import ChatCompletionRequest, CompletionRequest
from schemas.openai_models import Model, ModelList


class ModelPath(BaseModel):
    """Which model."""

    model: str = Field(description="A name that GET /v1/models lists.")


def add(app: OpenAPI, services: Services) -> None:
    """Add the routes."""
    models = services.models

    @app.post("/v1/chat/completions", tags=[OPENAI], responses={200: ChatCompletion, **openai_errors(404, 410, 422)})
    def chat(header: IdempotencyHeader, body: ChatCompletionRequest) -> Response:
        """Answer a conversation, whole or as a stream of text that is final."""
        requests = chat_jobs(body, models.policy(body.model))
        with services.streams.permit() as permit:
            jobs = Jobs(services, submit_all(services, requests, key=header.of_json()))
            return answer(jobs, ChatDialect.of(body, jobs.accepted[0]), permit, body)

    @app.post("/v1/completions", tags=[OPENAI], responses={200: TextCompletion, **openai_errors(404, 410, 422)})
    def complete(header: IdempotencyHeader, body: CompletionRequest) -> Response:
        """Answer one or more prompts, each as one message of the user's."""
        requests = completion_jobs(body, models.policy(body.model))
        with services.streams.permit() as permit:
            jobs = Jobs(services, submit_all(services, requests, key=header.of_json()))
            return answer(jobs, TextDialect.of(body, jobs.accepted[0]), permit, body)

    @app.get("/v1/models", tags=[OPENAI], responses={200: ModelList})
    def list_models() -> Response:
        """The model names, one for each policy."""
        return json_answer(models.listed())

    @app.get("/v1/models/<path:model>", tags=[OPENAI], responses={200: Model, **openai_errors(404)})
    def read_model(path: ModelPath) -> Response:
        """One model."""
        return json_answer(models.model(path.model))
