"""What both clients tell httpx, and how its responses and errors become replies."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from firstdraft.client.calls import Call, Reply

#: Where a gateway listens by default.
DEFAULT_URL = "http://127.0.0.1:8400"
#: Idle connections are closed after this many seconds; most proxies keep theirs longer.
KEEPALIVE_S = 30.0


def client_options(base_url: str, api_key: str | None, timeout_s: float, max_connections: int) -> dict[str, Any]:
    """Arguments of `httpx.Client` and `httpx.AsyncClient`."""
    return {
        "base_url": base_url,
        "headers": {} if api_key is None else {"Authorization": f"Bearer {api_key}"},
        "limits": httpx.Limits(
            max_connections=max_connections, max_keepalive_connections=max_connections, keepalive_expiry=KEEPALIVE_S
        ),
        "timeout": timeout_s,
        "trust_env": False,
    }


@contextmanager
def request_of(call: Call, timeout_s: float) -> Iterator[dict[str, Any]]:
    """Arguments of `build_request` for a call; a file to upload is open while the block runs."""
    request: dict[str, Any] = {
        "method": call.method,
        "url": call.path,
        "params": dict(call.params),
        "headers": dict(call.headers),
        # Longer for a call that waits. A place in the pool comes when another call ends.
        "timeout": httpx.Timeout(timeout_s, read=timeout_s + call.patience_s, pool=None),
    }
    if call.upload is None:
        yield {**request, "json": call.json}
        return
    with call.upload.open("rb") as content:
        yield {**request, "files": {"file": (call.upload.name, content)}, "data": {"purpose": "batch"}}


def reply_of(response: httpx.Response) -> Reply:
    """The reply of a response whose body has been read."""
    return Reply(response.status_code, response.content, {k.lower(): v for k, v in response.headers.items()})


def lost(error: httpx.TransportError) -> Reply:
    """The reply where no response came. Only if no connection was made is it certain that nothing arrived."""
    return Reply(error=error, may_have_arrived=not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout))
