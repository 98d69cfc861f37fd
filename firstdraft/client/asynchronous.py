"""`AsyncClient`: Firstdraft from asyncio. What it does is in calls.py; here is the I/O."""

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import httpx

from firstdraft.client.answers import Inference
from firstdraft.client.calls import Call, Conversation, Conversations, Pause, Prompt, Reply, describe
from firstdraft.client.connecting import DEFAULT_URL, client_options, lost, reply_of, request_of
from firstdraft.client.following import Following
from firstdraft.client.retries import DEFAULT_RULE, RetryRule
from firstdraft.client.statistics import ClientStatistics, Counters
from schemas.events import Event

P = ParamSpec("P")
T = TypeVar("T")


def _awaited(
    method: Callable[Concatenate[Conversations, P], Conversation[T]],
) -> Callable[Concatenate["AsyncClient", P], Coroutine[Any, Any, T]]:
    """The method of a client that carries the conversation out, with the same parameters."""

    async def call(self: "AsyncClient", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._run(method(self._conversations, *args, **kwargs))

    describe(call, method)
    return call


class AsyncClient:
    """`Client` for asyncio: the same methods, awaited, with the same promises. For one event loop.

    async with AsyncClient() as client:
        print((await client.infer("What is the capital of France?")).text)
    """

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout_s: float = 10.0,
        retries: RetryRule = DEFAULT_RULE,
        max_connections: int = 100,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._conversations = Conversations(retries, Counters())
        self._timeout_s = timeout_s
        self._http = httpx.AsyncClient(
            **client_options(base_url, api_key, timeout_s, max_connections), transport=transport
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections. Idempotent."""
        await self._http.aclose()

    submit = _awaited(Conversations.submit)
    job = _awaited(Conversations.job)
    wait = _awaited(Conversations.wait)
    result = _awaited(Conversations.result)
    cancel = _awaited(Conversations.cancel)
    infer = _awaited(Conversations.infer)
    start_batch = _awaited(Conversations.start_batch)
    batch_status = _awaited(Conversations.batch_status)
    wait_for_batch = _awaited(Conversations.wait_for_batch)
    cancel_batch = _awaited(Conversations.cancel_batch)
    download = _awaited(Conversations.download)
    system = _awaited(Conversations.system)

    async def events(self, job_id: str) -> AsyncIterator[Event]:
        """As `Client.events`."""
        following = Following(job_id, self._conversations.rule, self._conversations.counters)
        with self._conversations.counters.counting_errors():
            while True:
                try:
                    async with self._response(following.call()) as response:
                        reply = Reply(response.status_code)
                        if response.status_code != httpx.codes.OK:
                            await response.aread()
                            reply = reply_of(response)
                        else:
                            async for chunk in response.aiter_bytes():
                                for event in following.take(chunk):
                                    yield event
                except httpx.TransportError as error:
                    reply = lost(error)
                if following.is_over(reply):
                    return
                await asyncio.sleep(following.delay_s(reply, random.random()))  # noqa: S311 - jitter

    async def stream(self, prompt: Prompt, **options: Any) -> AsyncIterator[Event]:
        """As `Client.stream`."""
        job = await self.submit(prompt, **options)
        async for event in self.events(job.id):
            yield event

    async def infer_many(
        self, prompts: Iterable[Prompt], *, concurrency: int = 8, **options: Any
    ) -> AsyncIterator[Inference]:
        """As `Client.infer_many`."""
        in_flight: deque[asyncio.Task[Inference]] = deque()
        try:
            for prompt in prompts:
                if len(in_flight) == concurrency:
                    yield await in_flight.popleft()
                in_flight.append(asyncio.create_task(self.infer(prompt, **options)))
            while in_flight:
                yield await in_flight.popleft()
        finally:
            for task in in_flight:
                task.cancel()
            await asyncio.gather(*in_flight, return_exceptions=True)

    def stats(self) -> ClientStatistics:
        """As `Client.stats`."""
        return self._conversations.counters.read()

    async def _run(self, conversation: Conversation[T]) -> T:
        with self._conversations.counters.counting_errors():
            try:
                step = next(conversation)
                while True:
                    if isinstance(step, Pause):
                        await asyncio.sleep(step.seconds)
                        step = next(conversation)
                    else:
                        step = conversation.send(await self._send(step))
            except StopIteration as done:
                answer: T = done.value
                return answer

    async def _send(self, call: Call) -> Reply:
        try:
            async with self._response(call) as response:
                if call.save_to is None or response.status_code != httpx.codes.OK:
                    await response.aread()
                    return reply_of(response)
                with call.save_to.open("wb") as target:
                    async for chunk in response.aiter_bytes():
                        target.write(chunk)
                return Reply(response.status_code)
        except httpx.TransportError as error:
            return lost(error)

    @asynccontextmanager
    async def _response(self, call: Call) -> AsyncIterator[httpx.Response]:
        with request_of(call, self._timeout_s) as request:
            response = await self._http.send(self._http.build_request(**request), stream=True)
            try:
                yield response
            finally:
                await response.aclose()
