"""Whether the client is still connected, for routes that have nothing to write for a while."""

from collections.abc import Callable

from flask import has_request_context, request

from gateway.http.connections.client_socket import ClientSocket


class ClientLeft(Exception):
    """The client has left, and nobody waits for the answer."""


def disconnect_check() -> Callable[[], bool]:
    """A function that says whether the current request's client has left. Any thread may call it, at any time.

    A client that has shut down its sending side counts as gone, as with nginx and waitress. Without a connection
    (batches, tests without a server) the answer is always no.
    """
    connection = request.environ.get("gunicorn.socket") if has_request_context() else None
    return connection.has_left if isinstance(connection, ClientSocket) else lambda: False
