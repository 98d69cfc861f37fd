"""`AsyncClient`: Firstdraft from asyncio. Carries conversations out; what is said is decided in calls.py."""

import asyncio
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from firstdraft.client import calls
from firstdraft.client.answers import Inference
from firstdraft.client.calls import Call, Conversation, Pause, Prompt, Reply
from firstdraft.client.connecting import (
    DEFAULT_URL,
    form_of,
    headers_for,
    limits,
    options_of,
    replied,
    timeouts,
    unanswered,
)
from firstdraft.client.following import Following
from firstdraft.client.retries import DEFAULT_RULE, RetryRule
from firstdraft.client.statistics import ClientStatistics, Counters
from schemas.event_lines import EventLines
from schemas.events import Event
from schemas.jobs import Job, SystemReport
from schemas.openai_files import Batch, StoredFile
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
            base_url=base_url,
            headers=headers_for(api_key),
            limits=limits(max_connections),
            timeout=timeout_s,
            transport=transport,
            trust_env=False,
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
        self._counters.requested()
        call = Call("POST", "/v1/jobs", json=calls.job_body(prompt, options))
        return calls.read_as(Job, (await self._exchange(call)).content)

    async def job(self, job_id: str) -> Job:
        """As `Client.job`."""
        return calls.read_as(Job, (await self._exchange(Call("GET", calls.job_path(job_id)))).content)

    async def wait(self, job_id: str, timeout_s: float | None = None) -> Job:
        """As `Client.wait`."""
        return await self._carry_out(calls.wait_for(job_id, timeout_s, self._rule, self._counters))

    async def result(self, job_id: str, timeout_s: float | None = None) -> Result:
        """As `Client.result`."""
        job = await self.wait(job_id, timeout_s)
        with self._counters.counting_errors():
            return calls.result_of(job)

    async def cancel(self, job_id: str) -> Job:
        """As `Client.cancel`."""
        return calls.read_as(Job, (await self._exchange(Call("DELETE", calls.job_path(job_id)))).content)

    async def events(self, job_id: str) -> AsyncIterator[Event]:
        """As `Client.events`."""
        following = Following(job_id, self._rule, self._counters)
        with self._counters.counting_errors():
            while True:
                ended = Reply()
                call = following.call()
                try:
                    async with self._http.stream(
                        call.method, call.path, headers=dict(call.headers), timeout=timeouts(self._timeout_s, call)
                    ) as response:
                        ended = Reply(response.status_code)
                        if response.status_code != httpx.codes.OK:
                            await response.aread()
                            ended = replied(response)
                        else:
                            lines = EventLines()
                            async for chunk in response.aiter_bytes():
                                for event in (event for line in lines.take(chunk) for event in following.take(line)):
                                    yield event
                except httpx.TransportError as error:
                    ended = unanswered(error)
                if following.is_over(ended):
                    return
                await asyncio.sleep(following.lost(ended, random.random()))  # noqa: S311 - jitter

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
        began = time.perf_counter()
        self._counters.requested()
        body = calls.job_body(prompt, {"max_tokens": max_tokens, **options})
        job = await self._carry_out(calls.answer(body, timeout_s, self._rule, self._counters))
        with self._counters.counting_errors():
            inference = Inference.of(job, calls.result_of(job), (time.perf_counter() - began) * 1000)
        self._counters.answered(inference.latency_ms)
        return inference

    async def infer_many(
        self, prompts: Iterable[Prompt], *, concurrency: int = 8, **options: Any
    ) -> AsyncIterator[Inference]:
        """As `Client.infer_many`."""
        waiting: deque[asyncio.Task[Inference]] = deque()
        try:
            for prompt in prompts:
                if len(waiting) == concurrency:
                    yield await waiting.popleft()
                waiting.append(asyncio.create_task(self.infer(prompt, **options)))
            while waiting:
                yield await waiting.popleft()
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def start_batch(self, source: Path, *, endpoint: str = "/v1/jobs", window: str = "24h") -> Batch:
        """As `Client.start_batch`."""
        stored = calls.read_as(StoredFile, (await self._exchange(calls.upload(source))).content)
        return calls.read_as(Batch, (await self._exchange(calls.new_batch(stored.id, endpoint, window))).content)

    async def batch_status(self, batch_id: str) -> Batch:
        """As `Client.batch_status`."""
        return calls.read_as(Batch, (await self._exchange(calls.batch(batch_id))).content)

    async def wait_for_batch(self, batch_id: str, told: Callable[[Batch], None] = lambda _: None) -> Batch:
        """As `Client.wait_for_batch`."""
        return await self._carry_out(calls.follow_batch(batch_id, told, self._rule, self._counters))

    async def cancel_batch(self, batch_id: str) -> Batch:
        """As `Client.cancel_batch`."""
        return calls.read_as(Batch, (await self._exchange(calls.cancel_batch(batch_id))).content)

    async def download(self, file_id: str, target: Path) -> None:
        """As `Client.download`."""
        await self._exchange(calls.download(file_id, target))

    async def system(self) -> SystemReport:
        """As `Client.system`."""
        return calls.read_as(SystemReport, (await self._exchange(Call("GET", "/v1/stats"))).content)

    def stats(self) -> ClientStatistics:
        """As `Client.stats`."""
        return self._counters.read()

    async def _exchange(self, call: Call) -> Reply:
        return await self._carry_out(calls.exchange(call, self._rule, self._counters))

    async def _carry_out(self, conversation: Conversation[T]) -> T:
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
            with form_of(call) as form:
                request = self._http.build_request(call.method, call.path, **form, **options_of(call, self._timeout_s))
                response = await self._http.send(request, stream=True)
                try:
                    if call.save_to is None or response.status_code != httpx.codes.OK:
                        await response.aread()
                        return replied(response)
                    with call.save_to.open("wb") as target:
                        async for chunk in response.aiter_bytes():
                            target.write(chunk)
                    return Reply(response.status_code)
                finally:
                    await response.aclose()
        except httpx.TransportError as error:
            return unanswered(error)
