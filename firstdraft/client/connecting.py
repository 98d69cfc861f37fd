"""What both clients ask of httpx, and how its answers and errors become replies."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from firstdraft.client.calls import Call, Reply

#: Where a gateway listens by default.
DEFAULT_URL = "http://127.0.0.1:8400"
#: Idle connections are closed after this many seconds; below what proxies usually keep.
KEEPALIVE_S = 30.0


def headers_for(api_key: str | None) -> dict[str, str]:
    """Headers of every call."""
    return {} if api_key is None else {"Authorization": f"Bearer {api_key}"}


def limits(max_connections: int) -> httpx.Limits:
    """The connection pool."""
    return httpx.Limits(
        max_connections=max_connections, max_keepalive_connections=max_connections, keepalive_expiry=KEEPALIVE_S
    )


def timeouts(timeout_s: float, call: Call) -> httpx.Timeout:
    """The client's own timeout, longer for a call that waits; a place in the pool comes when another call ends."""
    return httpx.Timeout(timeout_s, read=timeout_s + call.patience_s, pool=None)


def options_of(call: Call, timeout_s: float) -> dict[str, Any]:
    """What httpx is told of a call besides what it sends."""
    return {
        "params": dict(call.params),
        "headers": dict(call.headers),
        "timeout": timeouts(timeout_s, call),
    }


@contextmanager
def form_of(call: Call) -> Iterator[dict[str, Any]]:
    """What a call sends; the file is open while the block runs."""
    if call.upload is None:
        yield {"json": call.json}
        return
    with call.upload.open("rb") as content:
        yield {"files": {"file": (call.upload.name, content)}, "data": {"purpose": "batch"}}


def replied(response: httpx.Response) -> Reply:
    """A reply that has been read."""
    return Reply(response.status_code, response.content, {k.lower(): v for k, v in response.headers.items()})


def unanswered(error: httpx.TransportError) -> Reply:
    """No reply. Only where no connection was made is it certain that nothing arrived."""
    return Reply(error=error, may_have_arrived=not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout))
