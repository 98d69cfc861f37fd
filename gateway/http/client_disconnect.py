"""Whether whoever asked is still there, for routes that have nothing to write for a while."""

from collections.abc import Callable

from flask import has_request_context, request

from gateway.http.connections.client_socket import ClientSocket


class ClientLeft(Exception):
    """Nobody waits for the answer any more."""


def asking_client_has_left() -> Callable[[], bool]:
    """Tells whether the current request's client has left. To be asked later, by any thread.

    A client that says that it will send no more counts as one that has left, as it does for nginx and waitress. Where
    there is no connection (batches, tests without a server) nobody ever leaves.
    """
    connection = request.environ.get("gunicorn.socket") if has_request_context() else None
    return connection.has_left if isinstance(connection, ClientSocket) else _never


def _never() -> bool:
    return False
