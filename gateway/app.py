"""The HTTP API: routes in, the broker out. `create_app` is given what it works with and builds nothing at import."""

import uuid
from contextlib import ExitStack
from functools import partial
from typing import cast

from flask import Response, g, request
from flask_openapi3.openapi import OpenAPI
from redis import ConnectionPool
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from gateway.batches import routes as batch_routes
from gateway.http import openapi, state_routes
from gateway.http.authentication import add_authentication, keys_are_required
from gateway.http.error_handlers import ANSWERS
from gateway.http.problems import invalid, no_text, problem
from gateway.http.rate_limits import add_rate_limits
from gateway.jobs import event_routes
from gateway.jobs import routes as job_routes
from gateway.openai import chat_routes, responses_routes
from gateway.openai.errors import is_openais
from gateway.openai.models import ModelTable
from gateway.openai.serving import in_openais_form
from gateway.services import Services
from gateway.websocket import routes as websocket_routes
from schemas.plain import NoText, read_json
from schemas.problems import Problem

#: How the paths of POST routes end that take no body.
BODILESS = ("/cancel",)
#: Bytes of an upload's fields beside its file, and how many parts it may have.
MAX_FORM_BYTES, MAX_FORM_PARTS = 64 * 1024, 32
#: The route files.
ROUTES = (
    job_routes,
    event_routes,
    chat_routes,
    responses_routes,
    batch_routes,
    websocket_routes,
    state_routes,
)


def create_app(services: Services, rate_limits: ConnectionPool | None = None) -> OpenAPI:
    """The WSGI application. `rate_limits` is where requests of API keys are counted; None: they are not."""
    app = OpenAPI(
        "gateway",
        info=openapi.INFO,
        security_schemes=openapi.SECURITY,
        responses=openapi.problems(422, *openapi.EVERYWHERE),
        validation_error_model=Problem,
        validation_error_callback=invalid,
    )
    app.config["MAX_CONTENT_LENGTH"] = services.settings.max_body_bytes
    app.config["MAX_FORM_MEMORY_SIZE"] = MAX_FORM_BYTES
    app.config["MAX_FORM_PARTS"] = MAX_FORM_PARTS
    add_errors(app)
    add_authentication(app, services.api_keys, required=keys_are_required(services.settings))
    if rate_limits is not None:
        add_rate_limits(app, services.settings.rate_limit, rate_limits)
    app.before_request(partial(_check_body, services))
    app.teardown_request(_end_transfer)
    app.after_request(_in_the_routes_form)
    app.after_request(_with_an_id)
    for routes in ROUTES:
        routes.add(app, services)
    policies = services.admission.policies
    models = [model.id for model in ModelTable(policies, services.settings.model_aliases).listed().data]
    openapi.complete(app.api_doc, models, sorted(policies))
    return app


def add_errors(app: OpenAPI) -> None:
    """Have every exception answered as a problem document."""

    @app.errorhandler(HTTPException)
    def on_http_error(error: HTTPException) -> Response:
        if error.response is not None:  # made by the validation callback
            return cast("Response", error.response)
        headers = {name: value for name, value in error.get_headers() if name.lower() != "content-type"}  # Allow
        return problem(error.code or 500, error.name, error.description or error.name, headers=headers)

    for kind, answer in ANSWERS.items():
        app.register_error_handler(kind, answer)


def _in_the_routes_form(response: Response) -> Response:
    return in_openais_form(response) if is_openais(request.path) else response


def _with_an_id(response: Response) -> Response:
    """As OpenAI's clients look for it, to be told to whoever asks about one request."""
    response.headers["X-Request-Id"] = f"req_{uuid.uuid4().hex}"
    return response


def _check_body(services: Services) -> Response | None:
    if request.method != "POST" or request.path.endswith(BODILESS) or request.routing_exception is not None:
        return None
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        detail = f"The body is encoded as {request.headers['Content-Encoding']!r}; send it as it is."
        return problem(415, "Unsupported content encoding", detail, headers={"Accept-Encoding": "identity"})
    if batch_routes.is_upload():
        request.max_content_length = services.settings.max_file_bytes
        g.transfer = ExitStack()
        g.transfer.enter_context(services.transfers.taken())
        return None
    if not request.is_json:
        detail = f"The body must be application/json (Content-Type is {request.content_type!r})"
        return problem(415, "Unsupported media type", detail)
    raw = request.get_data()
    if request.content_length is None and request.environ["wsgi.input"].read(1):
        raise RequestEntityTooLarge  # werkzeug cuts a body in chunks off at the limit
    return _check_json(raw)


def _check_json(raw: bytes) -> Response | None:
    try:
        read_json(raw)
    except NoText as error:
        return no_text(error)
    except ValueError as error:
        return problem(400, "The body is not JSON", str(error))
    return None


def _end_transfer(_error: BaseException | None) -> None:
    transfer: ExitStack | None = g.pop("transfer", None)
    if transfer is not None:
        transfer.close()
