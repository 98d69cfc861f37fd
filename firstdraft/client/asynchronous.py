"""`AsyncClient`: Firstdraft from asyncio. The protocol is in calls.py; here is the I/O."""

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from firstdraft.client import calls
from firstdraft.client.answers import Inference
from firstdraft.client.calls import Call, Conversation, ModelT, Pause, Prompt, Reply
from firstdraft.client.connecting import DEFAULT_URL, client_options, lost, reply_of, request_of
from firstdraft.client.following import Following
from firstdraft.client.retries import DEFAULT_RULE, RetryRule
from firstdraft.client.statistics import ClientStatistics, Counters
from schemas.events import Event
from schemas.jobs import Job, SystemReport
from schemas.openai_files import Batch
from schemas.results import Result

T = TypeVar("T")


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
        self._rule = retries
        self._counters = Counters()
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

    async def submit(self, prompt: Prompt, **options: Any) -> Job:
        """As `Client.submit`."""
        return await self._run(calls.submit(prompt, options, self._rule, self._counters))

    async def job(self, job_id: str) -> Job:
        """As `Client.job`."""
        return await self._fetch(Job, calls.job(job_id))

    async def wait(self, job_id: str, timeout_s: float | None = None) -> Job:
        """As `Client.wait`."""
        return await self._run(calls.wait_for(job_id, timeout_s, self._rule, self._counters))

    async def result(self, job_id: str, timeout_s: float | None = None) -> Result:
        """As `Client.result`."""
        return await self._run(calls.wait_for_result(job_id, timeout_s, self._rule, self._counters))

    async def cancel(self, job_id: str) -> Job:
        """As `Client.cancel`."""
        return await self._fetch(Job, calls.cancel(job_id))

    async def events(self, job_id: str) -> AsyncIterator[Event]:
        """As `Client.events`."""
        following = Following(job_id, self._rule, self._counters)
        with self._counters.counting_errors():
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

    async def infer(
        self,
        prompt: Prompt,
        *,
        max_tokens: int | None = None,
        use_draft_verify: bool | None = None,
        use_confidence_check: bool | None = None,
        timeout_s: float | None = None,
        **options: Any,
    ) -> Inference:
        """As `Client.infer`."""
        options.setdefault("policy", calls.policy_of(use_draft_verify, use_confidence_check))
        options["max_tokens"] = max_tokens
        return await self._run(calls.infer(prompt, options, timeout_s, self._rule, self._counters))

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

    async def start_batch(
        self, source: Path, *, endpoint: str = "/v1/jobs", window: str = "24h", idempotency_key: str | None = None
    ) -> Batch:
        """As `Client.start_batch`."""
        return await self._run(calls.start_batch(source, endpoint, window, idempotency_key, self._rule, self._counters))

    async def batch_status(self, batch_id: str) -> Batch:
        """As `Client.batch_status`."""
        return await self._fetch(Batch, calls.batch(batch_id))

    async def wait_for_batch(self, batch_id: str, on_progress: Callable[[Batch], None] = lambda _: None) -> Batch:
        """As `Client.wait_for_batch`."""
        return await self._run(calls.wait_for_batch(batch_id, on_progress, self._rule, self._counters))

    async def cancel_batch(self, batch_id: str) -> Batch:
        """As `Client.cancel_batch`."""
        return await self._fetch(Batch, calls.cancel_batch(batch_id))

    async def download(self, file_id: str, target: Path) -> None:
        """As `Client.download`."""
        await self._run(calls.exchange(calls.download(file_id, target), self._rule, self._counters))

    async def system(self) -> SystemReport:
        """As `Client.system`."""
        return await self._fetch(SystemReport, calls.system())

    def stats(self) -> ClientStatistics:
        """As `Client.stats`."""
        return self._counters.read()

    async def _fetch(self, model: type[ModelT], call: Call) -> ModelT:
        return await self._run(calls.fetch(model, call, self._rule, self._counters))

    async def _run(self, conversation: Conversation[T]) -> T:
        with self._counters.counting_errors():
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
