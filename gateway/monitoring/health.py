"""Health on a port of its own, with threads of its own: streams and waits cannot use them up."""

import logging
import socket
import threading

from flask_openapi3.openapi import OpenAPI
from werkzeug.serving import WSGIRequestHandler, make_server

from config.settings import GatewaySettings
from gateway.http.authentication import add_authentication, keys_are_required
from gateway.http.error_handlers import add_error_handlers
from gateway.http.listening import listen
from gateway.monitoring import routes
from gateway.services import Services


class Handler(WSGIRequestHandler):
    """Serves one request on a connection and a thread of its own."""

    #: Seconds after which a client that neither sends nor reads is cut off.
    timeout = 5


def bind(settings: GatewaySettings) -> socket.socket | None:
    """The listening socket, made once for all processes; None if no port is configured. Raises OSError."""
    if settings.health_port is None:
        return None
    return listen(settings.host, settings.health_port)


def serve(services: Services, listening: socket.socket) -> None:
    """Answer /healthz, /readyz and, for those who may ask, the statistics. Does not block: it has its own threads."""
    app = OpenAPI("health", doc_ui=False)
    add_error_handlers(app)
    add_authentication(app, services.api_keys, required=keys_are_required(services.settings))
    routes.add(app, services)
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # a line for each probe would say nothing
    host, port = listening.getsockname()[:2]
    server = make_server(host, port, app, threaded=True, fd=listening.fileno(), request_handler=Handler)
    threading.Thread(target=server.serve_forever, name="health", daemon=True).start()
