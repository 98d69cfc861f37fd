"""/v1/ws: submit, follow and cancel over one WebSocket."""

import socket
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from flask import Response, request
from flask_openapi3.openapi import OpenAPI

from gateway.http.authentication import Forbidden
from gateway.http.openapi import JOBS, Responses, problems
from gateway.services import Services
from gateway.websocket.connection import Connection, Gone
from gateway.websocket.session import Session


def add(app: OpenAPI, services: Services) -> None:
    """Add the route."""
    described: Responses = {101: {"description": "A WebSocket (schemas/sockets.py)."}, **problems(426)}

    @app.get("/v1/ws", tags=[JOBS], responses=described, websocket=True)
    def talk() -> Response:
        """Submit, follow and cancel over one WebSocket."""
        _check_origin()
        with services.streams.permit() as permit:
            return permit.release_after(Upgraded(services, request.environ["gunicorn.socket"]))


def _check_origin() -> None:
    """Raise `Forbidden` for another site's page: browsers let any page open a WebSocket to this machine."""
    origin = request.headers.get("Origin")
    if origin is not None and urlsplit(origin).netloc != request.host:
        raise Forbidden(f"A page of {origin} may not talk to this gateway.")


class Upgraded(Response):
    """Speaks WebSocket on the socket itself in place of sending an HTTP response."""

    def __init__(self, services: Services, raw: socket.socket) -> None:
        super().__init__()
        self._services = services
        self._raw = raw

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:  # noqa: ARG002 - WSGI
        """Block until the conversation is over. Raises StopIteration, which tells gunicorn that nothing follows."""
        try:
            connection = Connection(self._raw, self._services.settings.max_body_bytes)
            connection.open(request.full_path, dict(request.headers))
            with self._services.hub.subscribe() as subscription:
                Session(self._services, connection, subscription).run()
        except Gone:
            pass  # the handshake failed, and the client has been told
        finally:
            self.close()
        raise StopIteration
