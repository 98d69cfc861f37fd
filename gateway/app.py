"""The HTTP API as a WSGI application. Nothing is built at import: `create_app` gets what it works with."""

import uuid
from functools import partial

from flask import Response, g, request
from flask_openapi3.openapi import OpenAPI
from redis import ConnectionPool
from werkzeug.exceptions import RequestEntityTooLarge

from gateway.batches import routes as batch_routes
from gateway.http import openapi
from gateway.http.authentication import add_authentication, keys_are_required
from gateway.http.error_handlers import add_error_handlers, reject_invalid
from gateway.http.errors import ApiError
from gateway.http.rate_limits import add_rate_limits
from gateway.jobs import routes as job_routes
from gateway.monitoring import routes as monitoring_routes
from gateway.openai import chat_routes, responses_routes
from gateway.services import Services
from gateway.websocket import routes as websocket_routes
from schemas.plain import NoText, read_json
from schemas.problems import Problem

#: How the paths of the POST routes without a body end.
BODILESS = ("/cancel",)
#: The most bytes of an upload's fields beside its file, and the most parts that it may have.
MAX_FORM_BYTES, MAX_FORM_PARTS = 64 * 1024, 32
#: The modules that add routes.
ROUTES = (job_routes, chat_routes, responses_routes, batch_routes, websocket_routes, monitoring_routes)


def create_app(services: Services, rate_limits: ConnectionPool | None = None) -> OpenAPI:
    """The WSGI application. `rate_limits`: where the requests of each API key are counted; None: no limit."""
    app = OpenAPI(
        "gateway",
        info=openapi.INFO,
        security_schemes=openapi.SECURITY,
        responses=openapi.problems(422, *openapi.EVERYWHERE),
        validation_error_model=Problem,
        validation_error_callback=reject_invalid,
    )
    app.config["MAX_CONTENT_LENGTH"] = services.settings.max_body_bytes
    app.config["MAX_FORM_MEMORY_SIZE"] = MAX_FORM_BYTES
    app.config["MAX_FORM_PARTS"] = MAX_FORM_PARTS
    add_error_handlers(app)
    add_authentication(app, services.api_keys, required=keys_are_required(services.settings))
    if rate_limits is not None:
        add_rate_limits(app, services.settings.rate_limit, rate_limits)
    app.before_request(partial(_check_body, services))
    app.teardown_request(_end_upload)
    app.after_request(_add_request_id)
    for routes in ROUTES:
        routes.add(app, services)
    models = [model.id for model in services.models.listed().data]
    openapi.complete(app.api_doc, models, sorted(services.admission.policies))
    return app


def _add_request_id(response: Response) -> Response:
    """The header that OpenAI's clients show their users, who can then ask about one request."""
    response.headers["X-Request-Id"] = f"req_{uuid.uuid4().hex}"
    return response


def _check_body(services: Services) -> None:
    """Read the body of a POST, except an upload's. Raises `ApiError`, `NoText` and werkzeug's exceptions."""
    if request.method != "POST" or request.path.endswith(BODILESS) or request.routing_exception is not None:
        return
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        detail = f"The body is encoded as {request.headers['Content-Encoding']!r}; send it as it is."
        raise ApiError(415, "Unsupported content encoding", detail, headers={"Accept-Encoding": "identity"})
    if batch_routes.is_upload():
        request.max_content_length = services.settings.max_file_bytes
        g.upload_permit = services.transfers.permit()
        return
    if not request.is_json:
        detail = f"The body must be application/json (Content-Type is {request.content_type!r})"
        raise ApiError(415, "Unsupported media type", detail)
    raw = request.get_data()
    if request.content_length is None and request.environ["wsgi.input"].read(1):
        raise RequestEntityTooLarge  # werkzeug cuts a chunked body off at the limit
    try:
        read_json(raw)
    except NoText:
        raise
    except ValueError as error:
        raise ApiError(400, "The body is not JSON", str(error)) from error


def _end_upload(_error: BaseException | None) -> None:
    if "upload_permit" in g:
        g.pop("upload_permit").close()
