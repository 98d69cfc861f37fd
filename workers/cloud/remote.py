"""A remote OpenAI-compatible server as the cloud tier: a `vllm serve` elsewhere, or a hosted model.

Such a server cannot take a draft, so it writes from nothing, and each result says so. One pool of connections serves
all requests; what fails before the first text has come is tried again.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import Any
from uuid import uuid4

import httpx

from config.settings import CloudSettings, read_secret
from schemas.event_lines import EventLines
from schemas.requests import EVERYBODYS_NAMESPACE
from schemas.results import DraftStatistics, FailureKind
from schemas.workers import CacheStatistics, VerificationStatistics
from workers.cloud.cloud_calls import CloudCalls, Progressed
from workers.cloud.cloud_engine import AnswerOrder, CloudAnswer, Listener
from workers.cloud.remote_protocol import Chunk, Reply, pieces, refusal, request_body
from workers.runtime.failures import EngineDied, RequestRefused

#: The first pause before another try, in seconds; it doubles each time.
FIRST_PAUSE_S = 0.5
#: The longest pause, in seconds, whatever the server asks for.
LONGEST_PAUSE_S = 20.0
#: How long a connection may take to be made, in seconds.
CONNECT_TIMEOUT_S = 5.0
#: Statuses after which the same request may succeed.
PASSING_STATUSES = frozenset({408, 409, 429, 500, 502, 503, 504})
#: What results say of a draft that such a server was not given.
NOT_VERIFIED = "the cloud engine is a remote OpenAI-compatible server, which cannot take a draft"

log = logging.getLogger(__name__)


class _TryAgain(Exception):
    """The server did not take the request; it may take it later."""

    def __init__(self, reason: str, pause_s: float | None = None) -> None:
        super().__init__(reason)
        self.pause_s = pause_s


class RemoteEngine:
    """See `CloudEngine`. `start` once, `close` once."""

    engine_name = "openai"

    def __init__(self, settings: CloudSettings, transport: httpx.AsyncBaseTransport | None = None) -> None:
        remote = settings.openai
        self._transport = transport
        self.model_name = remote.model or ""
        self._remote = remote
        self._max_in_flight = settings.max_in_flight
        self._flights = CloudCalls("cloud-remote", self._explain)
        self._client: httpx.AsyncClient | None = None
        self._closed = False
        self._hits = self._misses = self._tokens_saved = 0
        self._verification = VerificationStatistics()

    def start(self) -> None:
        """Block until the server answers. Raises `EngineDied` if it does not after all tries."""
        self._flights.start()
        try:
            self._flights.run(self._start())
        except (httpx.HTTPError, _TryAgain) as error:
            self.close()
            raise EngineDied(f"the cloud server {self._remote.base_url} does not answer: {error}") from error
        log.info("cloud_engine_started engine=openai base_url=%s model=%s", self._remote.base_url, self.model_name)

    async def _start(self) -> None:
        key = read_secret(self._remote.api_key_env)
        self._client = httpx.AsyncClient(
            base_url=(self._remote.base_url or "").rstrip("/") + "/",
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(self._remote.timeout_s, connect=CONNECT_TIMEOUT_S),
            transport=self._transport,
            limits=httpx.Limits(max_connections=self._max_in_flight, max_keepalive_connections=self._max_in_flight),
        )
        await self._insist(self._greet)

    async def _greet(self) -> None:
        assert self._client is not None
        _check(await _sent(self._client.get("models")))

    def submit(self, order: AnswerOrder, listener: Listener | None = None) -> Future[CloudAnswer]:
        """Begin an answer and return at once."""
        return self._flights.launch(order.request_id, lambda progressed: self._answer(order, listener, progressed))

    async def _answer(self, order: AnswerOrder, listener: Listener | None, progressed: Progressed) -> CloudAnswer:
        body = request_body(order, self.model_name, salt=self._salt(order))
        reply = Reply(listener)

        async def attempt() -> None:
            async for chunk in self._stream(body, reply):
                reply.take(chunk)
                progressed(reply.written)

        await self._insist(attempt)
        self._hits += reply.cached_tokens > 0
        self._misses += reply.cached_tokens == 0
        self._tokens_saved += reply.cached_tokens
        answer = reply.answer(self._statistics(order, reply.written))
        if self._remote.cache_salt or order.cache_namespace == EVERYBODYS_NAMESPACE:
            return answer
        # Without salts the server's cache is everybody's: what it spared one owner may be what another had sent.
        return replace(answer, cached_tokens=0)

    def _salt(self, order: AnswerOrder) -> str | None:
        """What keeps the request's cached prefixes apart; None where the server is not to be told."""
        if not order.use_cache:
            return uuid4().hex
        return order.cache_namespace if self._remote.cache_salt else None

    async def _stream(self, body: dict[str, Any], reply: Reply) -> AsyncIterator[Chunk]:
        """The server's chunks. Raises `_TryAgain` only as long as nothing has come."""
        assert self._client is not None
        try:
            async with self._client.stream("POST", "chat/completions", json=body) as response:
                if response.status_code != httpx.codes.OK:
                    await response.aread()
                _check(response)
                async for chunk in pieces(_lines(response)):
                    yield chunk
        except httpx.TransportError as error:
            if reply.written:
                raise RequestRefused(
                    FailureKind.ENGINE_ERROR, f"the cloud server broke off after {reply.written} tokens: {error!r}"
                ) from error
            raise _TryAgain(repr(error)) from error

    async def _insist(self, attempt: Callable[[], Awaitable[None]]) -> None:
        """Try until it works, with growing pauses, as often as configured."""
        pause_s = FIRST_PAUSE_S
        for tries_left in range(self._remote.max_retries, -1, -1):
            try:
                await attempt()
            except _TryAgain as again:
                if not tries_left:
                    raise
                wait_s = min(again.pause_s or pause_s, LONGEST_PAUSE_S)
                log.info("cloud_request_delayed reason=%s pause_s=%.1f tries_left=%d", again, wait_s, tries_left)
                await asyncio.sleep(wait_s)
                pause_s *= 2
            else:
                return

    def _statistics(self, order: AnswerOrder, written: int) -> DraftStatistics | None:
        self._verification = self._verification.model_copy(update={"requests": self._verification.requests + 1})
        if order.draft is None:
            return None
        return DraftStatistics(
            drafted_tokens=len(order.draft.token_ids),
            rewritten_tokens=written,
            escalated_early=order.draft.escalated_early,
            lossless=True,
            not_verified_because=NOT_VERIFIED,
        )

    def _explain(self, request_id: str, error: BaseException) -> Exception:
        if isinstance(error, RequestRefused):
            return error
        if isinstance(error, _TryAgain):
            tries = self._remote.max_retries + 1
            return RequestRefused(
                FailureKind.ENGINE_ERROR, f"the cloud server did not take {request_id} in {tries} tries: {error}"
            )
        return RequestRefused(FailureKind.ENGINE_ERROR, f"the cloud server failed on {request_id}: {error!r}")

    def cancel(self, request_id: str) -> None:
        """Close the request's connection, upon which the server stops writing."""
        self._flights.cancel(request_id)

    def progress(self, request_id: str) -> int:
        """Pieces of text that have come so far: one token each on most servers."""
        return self._flights.progress(request_id)

    @property
    def prefix_holder(self) -> None:
        """Nobody: what a remote server's cache holds is not known."""

    def cache_statistics(self) -> CacheStatistics:
        """What the server said of its cache; its size is not known here."""
        return CacheStatistics(enabled=True, hits=self._hits, misses=self._misses, tokens_saved=self._tokens_saved)

    def verification_statistics(self) -> VerificationStatistics:
        """No draft is ever verified here."""
        return self._verification

    @property
    def in_flight(self) -> int:
        """Answers that are being written."""
        return len(self._flights)

    @property
    def alive(self) -> bool:
        """Until it is closed: a server that is away may come back, and each request says whether it did."""
        return self._client is not None and not self._closed

    def close(self) -> None:
        """Close all connections."""
        if not self._closed:
            self._closed = True
            self._flights.close(self._stop())

    async def _stop(self) -> None:
        if self._client is not None:
            await self._client.aclose()


async def _sent(request: Any) -> httpx.Response:
    try:
        response: httpx.Response = await request
    except httpx.TransportError as error:
        raise _TryAgain(repr(error)) from error
    return response


async def _lines(response: httpx.Response) -> AsyncIterator[str]:
    lines = EventLines()
    async for chunk in response.aiter_bytes():
        for line in lines.take(chunk):
            yield line
    for line in lines.last():
        yield line


def _check(response: httpx.Response) -> None:
    if response.status_code in PASSING_STATUSES:
        asked = response.headers.get("retry-after", "")
        raise _TryAgain(f"status {response.status_code}", float(asked) if asked.isdigit() else None)
    if response.status_code != httpx.codes.OK:
        raise refusal(response.status_code, response.text)
