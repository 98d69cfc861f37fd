"""/v1/ws: submit, follow and cancel over one WebSocket."""

import socket
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from flask import Response, request
from flask_openapi3.openapi import OpenAPI
from werkzeug.routing.exceptions import WebsocketMismatch

from gateway.http.authentication import Forbidden
from gateway.http.openapi import JOBS, Responses, problems
from gateway.http.problems import problem
from gateway.services import Services
from gateway.websocket.connection import Connection, Gone
from gateway.websocket.session import Session


def add(app: OpenAPI, services: Services) -> None:
    """Add the route."""

    @app.errorhandler(WebsocketMismatch)
    def on_mismatch(_error: WebsocketMismatch) -> Response:
        headers = {"Upgrade": "websocket", "Connection": "Upgrade"}
        return problem(426, "Upgrade required", "/v1/ws speaks WebSocket, and nothing else does.", headers=headers)

    described: Responses = {101: {"description": "A WebSocket (schemas/sockets.py)."}, **problems(426)}

    @app.get("/v1/ws", tags=[JOBS], responses=described, websocket=True)
    def talk() -> Response:
        """Submit, follow and cancel over one WebSocket."""
        _check_origin()
        with services.slots.taken() as slot:
            return slot.held_by(Upgraded(services, request.environ["gunicorn.socket"]))


def _check_origin() -> None:
    """Raise `Forbidden` for a page of another site: browsers let any page open a WebSocket to this machine."""
    origin = request.headers.get("Origin")
    if origin is not None and urlsplit(origin).netloc != request.host:
        raise Forbidden(f"A page of {origin} may not talk to this gateway.")


class Upgraded(Response):
    """Talks on the socket itself in place of an HTTP response."""

    def __init__(self, services: Services, raw: socket.socket) -> None:
        super().__init__()
        self._services = services
        self._raw = raw

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:  # noqa: ARG002 - WSGI
        """Block until the conversation is over. Raises StopIteration: it tells gunicorn that nothing is to follow."""
        try:
            connection = Connection(self._raw, self._services.settings.max_body_bytes)
            connection.open(request.full_path, dict(request.headers))
            with self._services.hub.listening() as listening:
                Session(self._services, connection, listening).run()
        except Gone:
            pass  # before it was open; the refusal has been sent
        finally:
            self.close()
        raise StopIteration
