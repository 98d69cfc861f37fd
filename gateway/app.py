"""The HTTP API: routes in, the broker out. `create_app` is given what it works with and builds nothing at import."""

import json
from functools import partial
from typing import cast

from flask import Response, request
from flask_openapi3.openapi import OpenAPI
from werkzeug.exceptions import HTTPException

from gateway import documents
from gateway.admission import Refused
from gateway.answers import RETRY_AFTER_S
from gateway.openai_compatible.errors import PREFIXES
from gateway.openai_compatible.serving import in_openais_form
from gateway.problems import invalid, problem, refused
from gateway.redis_away import REDIS_AWAY
from gateway.routes import events, jobs, openai_chat, openai_files, openai_responses, sockets, state
from gateway.services import Services
from gateway.slots import TooManyStreams
from schemas.problems import Problem

#: How the paths of POST routes end that take no body.
BODILESS = ("/cancel",)
#: The route files.
ROUTES = (jobs, events, openai_chat, openai_responses, openai_files, sockets, state)


def create_app(services: Services) -> OpenAPI:
    """The WSGI application."""
    app = OpenAPI(
        "gateway",
        info=documents.INFO,
        responses=documents.problems(422, 503),
        validation_error_model=Problem,
        validation_error_callback=invalid,
    )
    app.config["MAX_CONTENT_LENGTH"] = services.settings.max_body_bytes
    _add_errors(app, services)
    for routes in ROUTES:
        routes.add(app, services)
    return app


def _add_errors(app: OpenAPI, services: Services) -> None:
    @app.errorhandler(HTTPException)
    def on_http_error(error: HTTPException) -> Response:
        if error.response is not None:  # made by the validation callback
            return cast("Response", error.response)
        return problem(error.code or 500, error.name, error.description or error.name)

    @app.errorhandler(Refused)
    def on_refusal(error: Refused) -> Response:
        return refused(error)

    @app.errorhandler(RecursionError)
    def on_recursion(_error: RecursionError) -> Response:
        return problem(400, "The body is nested too deeply", "Nothing was stored.")

    @app.errorhandler(TooManyStreams)
    def on_too_many_streams(error: TooManyStreams) -> Response:
        return problem(503, "Too many streams", str(error), headers={"Retry-After": RETRY_AFTER_S})

    def on_redis_away(error: Exception) -> Response:
        app.logger.warning("redis_away error=%s", error)
        headers = {"Retry-After": RETRY_AFTER_S}
        return problem(503, "Redis is away", "Nothing was stored; try again.", headers=headers)

    for kind in REDIS_AWAY:
        app.register_error_handler(kind, on_redis_away)

    app.before_request(partial(_check_body, services.settings.max_file_bytes))
    app.after_request(_in_the_routes_form)


def _in_the_routes_form(response: Response) -> Response:
    return in_openais_form(response) if request.path.startswith(PREFIXES) else response


def _check_body(max_file_bytes: int) -> Response | None:
    if request.method != "POST" or request.path.endswith(BODILESS):
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
