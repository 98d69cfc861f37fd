"""The HTTP API: routes in, the broker out. `create_app` is given what it works with and builds nothing at import."""

import json
from functools import partial
from typing import cast

from flask import Response, request
from flask_openapi3.openapi import OpenAPI
from redis import ConnectionPool
from werkzeug.exceptions import HTTPException

from gateway import documents
from gateway.authentication import add_authentication, keys_are_required
from gateway.openai_compatible.errors import PREFIXES
from gateway.openai_compatible.models import ModelTable
from gateway.openai_compatible.serving import in_openais_form
from gateway.problems import invalid, problem
from gateway.rate_limits import add_rate_limits
from gateway.refusals import ANSWERS
from gateway.routes import events, jobs, openai_chat, openai_files, openai_responses, sockets, state
from gateway.services import Services
from schemas.problems import Problem

#: How the paths of POST routes end that take no body.
BODILESS = ("/cancel",)
#: The route files.
ROUTES = (jobs, events, openai_chat, openai_responses, openai_files, sockets, state)


def create_app(services: Services, rate_limits: ConnectionPool | None = None) -> OpenAPI:
    """The WSGI application. `rate_limits` is where requests of API keys are counted; None: they are not."""
    app = OpenAPI(
        "gateway",
        info=documents.INFO,
        security_schemes=documents.SECURITY,
        responses=documents.problems(422, *documents.EVERYWHERE),
        validation_error_model=Problem,
        validation_error_callback=invalid,
    )
    app.config["MAX_CONTENT_LENGTH"] = services.settings.max_body_bytes
    add_errors(app)
    add_authentication(app, services.api_keys, required=keys_are_required(services.settings))
    if rate_limits is not None:
        add_rate_limits(app, services.settings.rate_limit, rate_limits)
    app.before_request(partial(_check_body, services.settings.max_file_bytes))
    app.after_request(_in_the_routes_form)
    for routes in ROUTES:
        routes.add(app, services)
    policies = services.admission.policies
    models = [model.id for model in ModelTable(policies, services.settings.model_aliases).listed().data]
    documents.complete(app.api_doc, models, sorted(policies))
    return app


def add_errors(app: OpenAPI) -> None:
    """Have every exception answered as a problem document."""

    @app.errorhandler(HTTPException)
    def on_http_error(error: HTTPException) -> Response:
        if error.response is not None:  # made by the validation callback
            return cast("Response", error.response)
        return problem(error.code or 500, error.name, error.description or error.name)

    for kind, answer in ANSWERS.items():
        app.register_error_handler(kind, answer)


def _in_the_routes_form(response: Response) -> Response:
    return in_openais_form(response) if request.path.startswith(PREFIXES) else response


def _check_body(max_file_bytes: int) -> Response | None:
    if request.method != "POST" or request.path.endswith(BODILESS) or request.routing_exception is not None:
        return None
    if openai_files.is_upload():
        request.max_content_length = max_file_bytes
        return None
    if not request.is_json:
        detail = f"The body must be application/json (Content-Type is {request.content_type!r})"
        return problem(415, "Unsupported media type", detail)
    try:
        json.loads(request.get_data())
    except ValueError as error:
        return problem(400, "The body is not JSON", str(error))
    return None
