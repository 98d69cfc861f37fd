"""Health on a port of its own: threads that streams cannot use up, in the process whose health it is."""

import logging
import socket
import threading

from flask_openapi3.openapi import OpenAPI
from werkzeug.serving import WSGIRequestHandler, make_server

from config.settings import GatewaySettings
from gateway.app import add_errors
from gateway.http import state_routes
from gateway.http.authentication import add_authentication, keys_are_required
from gateway.http.listening import listen
from gateway.services import Services


class Handler(WSGIRequestHandler):
    """One connection, on a thread of its own, for one request."""

    #: Seconds that its client may send, or take, nothing.
    timeout = 5


def bind(settings: GatewaySettings) -> socket.socket | None:
    """The port, taken once for all processes; None where none is configured. Raises OSError where it is taken."""
    if settings.health_port is None:
        return None
    return listen(settings.host, settings.health_port)


def serve(services: Services, listening: socket.socket) -> None:
    """Answer /healthz, /readyz and, for whoever may ask, the statistics on the port, on threads of this process."""
    app = OpenAPI("health", doc_ui=False)
    add_errors(app)
    add_authentication(app, services.api_keys, required=keys_are_required(services.settings))
    state_routes.add(app, services)
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # a line for each look would say nothing
    host, port = listening.getsockname()[:2]
    server = make_server(host, port, app, threaded=True, fd=listening.fileno(), request_handler=Handler)
    threading.Thread(target=server.serve_forever, name="health", daemon=True).start()
