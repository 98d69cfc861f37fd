"""A remote OpenAI-compatible server as the cloud tier: a `vllm serve` elsewhere, or a hosted model.

Such a server cannot verify a draft, so it writes the whole answer, and each result says so. One pool of connections
serves all requests; what fails before the first text has come is tried again.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any
from uuid import uuid4

import httpx

from config.settings import CloudSettings, read_secret
from schemas.event_lines import EventLines
from schemas.requests import EVERYBODYS_NAMESPACE
from schemas.results import DraftStatistics, FailureKind
from schemas.workers import CacheStatistics
from workers.cloud.answer_order import AnswerOrder, CloudAnswer
from workers.cloud.async_engine import AsyncEngine, ReportProgress
from workers.cloud.remote_protocol import Reply, chunks, refusal, request_body
from workers.runtime.engine import Listener
from workers.runtime.failures import EngineDied, RequestRefused

#: The first pause before another try, in seconds; it doubles each time.
FIRST_PAUSE_S = 0.5
#: The longest pause, in seconds, whatever the server asks for.
MAX_PAUSE_S = 20.0
#: How long a connection may take to be made, in seconds.
CONNECT_TIMEOUT_S = 5.0
#: Statuses after which the same request may succeed later.
TRANSIENT_STATUSES = frozenset({408, 409, 429, 500, 502, 503, 504})
#: What results say of a draft that such a server was not given.
NOT_VERIFIED = "the cloud engine is a remote OpenAI-compatible server, which cannot take a draft"

log = logging.getLogger(__name__)


class _TransientError(Exception):
    """The server did not take the request; it may take it later."""

    def __init__(self, reason: str, pause_s: float | None = None) -> None:
        super().__init__(reason)
        #: How long the server asks clients to wait.
        self.pause_s = pause_s


class RemoteEngine(AsyncEngine):
    """See `Engine`. `start` once, `close` once."""

    engine_name = "openai"

    def __init__(self, settings: CloudSettings, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._remote = remote = settings.openai
        self.model_name = remote.model or ""
        key = read_secret(remote.api_key_env)
        self._client = httpx.AsyncClient(
            base_url=(remote.base_url or "").rstrip("/") + "/",
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(remote.timeout_s, connect=CONNECT_TIMEOUT_S),
            transport=transport,
            limits=httpx.Limits(
                max_connections=settings.max_in_flight, max_keepalive_connections=settings.max_in_flight
            ),
        )
        super().__init__("cloud-remote")
        self._opened = False
        self._hits = self._misses = self._tokens_saved = 0

    async def _open(self) -> None:
        try:
            await self._exchange("GET", "models", httpx.Response.aread)
        except (httpx.HTTPError, _TransientError, RequestRefused) as error:
            raise EngineDied(f"the cloud server {self._remote.base_url} does not answer: {error}") from error
        self._opened = True
        log.info("cloud_engine_started engine=openai base_url=%s model=%s", self._remote.base_url, self.model_name)

    async def _answer(self, order: AnswerOrder, listener: Listener | None, report: ReportProgress) -> CloudAnswer:
        reply = Reply(listener)

        async def read(response: httpx.Response) -> None:
            try:
                async for chunk in chunks(_lines(response)):
                    reply.take(chunk)
                    report(reply.num_tokens)
            except httpx.TransportError as error:
                if not reply.num_tokens:
                    raise
                reason = f"the cloud server broke off after {reply.num_tokens} tokens: {error!r}"
                raise RequestRefused(FailureKind.ENGINE_ERROR, reason) from error

        body = request_body(order, self.model_name, salt=self._salt(order))
        await self._exchange("POST", "chat/completions", read, body)
        answer = reply.answer(_draft_statistics(order, reply.num_tokens))
        self._hits += answer.cached_tokens > 0
        self._misses += answer.cached_tokens == 0
        self._tokens_saved += answer.cached_tokens
        if self._remote.cache_salt or order.cache_namespace == EVERYBODYS_NAMESPACE:
            return answer
        # Without salts all owners share the server's cache: the cached tokens may be those of another's prompt.
        return replace(answer, cached_tokens=0)

    def _salt(self, order: AnswerOrder) -> str | None:
        """The salt that separates cached prefixes; None for a server that takes none."""
        if not order.use_cache:
            return uuid4().hex
        return order.cache_namespace if self._remote.cache_salt else None

    async def _exchange(
        self,
        method: str,
        path: str,
        read: Callable[[httpx.Response], Awaitable[Any]],
        body: dict[str, Any] | None = None,
    ) -> None:
        """Send the request and read its response, with retries and growing pauses as configured.

        Raises `_TransientError` after the last try, and what `read` raises unless it is a transport error.
        """
        pause_s = FIRST_PAUSE_S
        for tries_left in range(self._remote.max_retries, -1, -1):
            try:
                async with self._client.stream(method, path, json=body) as response:
                    await _check(response)
                    await read(response)
                    return
            except _TransientError as error:
                failure = error
            except httpx.TransportError as error:
                failure = _TransientError(repr(error))
            if not tries_left:
                raise failure
            wait_s = min(failure.pause_s or pause_s, MAX_PAUSE_S)
            log.info("cloud_request_delayed reason=%s pause_s=%.1f tries_left=%d", failure, wait_s, tries_left)
            await asyncio.sleep(wait_s)
            pause_s *= 2

    def _explain(self, request_id: str, error: BaseException) -> Exception:
        if isinstance(error, RequestRefused):
            return error
        if isinstance(error, _TransientError):
            reason = f"did not take {request_id} in {self._remote.max_retries + 1} tries: {error}"
        else:
            reason = f"failed on {request_id}: {error!r}"
        return RequestRefused(FailureKind.ENGINE_ERROR, f"the cloud server {reason}")

    @property
    def cached_prefixes(self) -> None:
        """None: the content of a remote server's cache is not known."""

    def cache_statistics(self) -> CacheStatistics:
        """What the server said of its cache; its size is not known here."""
        return CacheStatistics(enabled=True, hits=self._hits, misses=self._misses, tokens_saved=self._tokens_saved)

    @property
    def alive(self) -> bool:
        """Until it is closed: a server that is away may come back, and each request says whether it did."""
        return self._opened and not self._closed

    async def _release(self) -> None:
        await self._client.aclose()


def _draft_statistics(order: AnswerOrder, num_tokens: int) -> DraftStatistics | None:
    if order.draft is None:
        return None
    return DraftStatistics(
        drafted_tokens=len(order.draft.token_ids),
        rewritten_tokens=num_tokens,
        escalated_early=order.draft.escalated_early,
        lossless=True,
        not_verified_because=NOT_VERIFIED,
    )


async def _lines(response: httpx.Response) -> AsyncIterator[str]:
    lines = EventLines()
    async for data in response.aiter_bytes():
        for line in lines.take(data):
            yield line
    for line in lines.last():
        yield line


async def _check(response: httpx.Response) -> None:
    if response.status_code in TRANSIENT_STATUSES:
        retry_after = response.headers.get("retry-after", "")
        raise _TransientError(f"status {response.status_code}", float(retry_after) if retry_after.isdigit() else None)
    if response.status_code != httpx.codes.OK:
        await response.aread()
        raise refusal(response.status_code, response.text)
