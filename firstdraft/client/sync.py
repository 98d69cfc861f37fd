"""`Client`: Firstdraft from ordinary Python. The protocol is in calls.py; here is the I/O."""

import random
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
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


class Client:
    """Talks to one gateway over pooled connections; may be used from any thread.

    Use it in a `with` block, or call `close`. Every method blocks and raises `FirstdraftError`. Calls are retried
    where that is safe: after no answer or a status that says "not now", with growing, jittered delays, or after the
    time that the gateway asks for. A submission carries an idempotency key, so a retry starts nothing twice.

        with Client() as client:
            print(client.infer("What is the capital of France?").text)
    """

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout_s: float = 10.0,
        retries: RetryRule = DEFAULT_RULE,
        max_connections: int = 100,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._rule = retries
        self._counters = Counters()
        self._timeout_s = timeout_s
        self._http = httpx.Client(**client_options(base_url, api_key, timeout_s, max_connections), transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections. Idempotent."""
        self._http.close()

    def submit(self, prompt: Prompt, **options: Any) -> Job:
        """Send a prompt, or a conversation, and return at once. `options` are those of `POST /v1/jobs`."""
        return self._run(calls.submit(prompt, options, self._rule, self._counters))

    def job(self, job_id: str) -> Job:
        """The job as it is now."""
        return self._fetch(Job, calls.job(job_id))

    def wait(self, job_id: str, timeout_s: float | None = None) -> Job:
        """Wait until the job has finished, successfully or not. Raises `NotInTime`; the job then goes on."""
        return self._run(calls.wait_for(job_id, timeout_s, self._rule, self._counters))

    def result(self, job_id: str, timeout_s: float | None = None) -> Result:
        """Wait for the job's answer. Raises `JobFailed`, `JobCancelled` or `NotInTime`."""
        return self._run(calls.wait_for_result(job_id, timeout_s, self._rule, self._counters))

    def cancel(self, job_id: str) -> Job:
        """Cancel the job; a finished one stays as it is."""
        return self._fetch(Job, calls.cancel(job_id))

    def events(self, job_id: str) -> Iterator[Event]:
        """The job's events from its beginning to its end. Reconnects, and resumes, as often as needed."""
        following = Following(job_id, self._rule, self._counters)
        with self._counters.counting_errors():
            while True:
                reply = yield from self._connection(following)
                if following.is_over(reply):
                    return
                time.sleep(following.delay_s(reply, random.random()))  # noqa: S311 - jitter

    def stream(self, prompt: Prompt, **options: Any) -> Iterator[Event]:
        """Send a prompt and yield its events. Leaving the loop early does not cancel the job."""
        return self.events(self.submit(prompt, **options).id)

    def infer(
        self,
        prompt: Prompt,
        *,
        max_tokens: int | None = None,
        use_draft_verify: bool | None = None,
        use_confidence_check: bool | None = None,
        timeout_s: float | None = None,
        **options: Any,
    ) -> Inference:
        """Send a prompt and wait for its answer. Raises `NotInTime` after `timeout_s`.

        `use_draft_verify`: whether the cloud verifies the draft or generates from scratch. `use_confidence_check`:
        whether a confident draft is the answer. If only one is given, the other counts as true; with both off, the
        draft is the answer. `options` are those of `POST /v1/jobs`.
        """
        options.setdefault("policy", calls.policy_of(use_draft_verify, use_confidence_check))
        options["max_tokens"] = max_tokens
        return self._run(calls.infer(prompt, options, timeout_s, self._rule, self._counters))

    def infer_many(self, prompts: Iterable[Prompt], *, concurrency: int = 8, **options: Any) -> Iterator[Inference]:
        """Answers in the order of their prompts, with at most `concurrency` requests in flight.

        Prompts are drawn as there is room for them, so there may be any number. The first error ends it.
        """
        with ThreadPoolExecutor(concurrency, thread_name_prefix="firstdraft-client") as pool:
            in_flight: deque[Future[Inference]] = deque()
            try:
                for prompt in prompts:
                    if len(in_flight) == concurrency:
                        yield in_flight.popleft().result()
                    in_flight.append(pool.submit(self.infer, prompt, **options))
                while in_flight:
                    yield in_flight.popleft().result()
            finally:
                for future in in_flight:
                    future.cancel()

    def start_batch(
        self, source: Path, *, endpoint: str = "/v1/jobs", window: str = "24h", idempotency_key: str | None = None
    ) -> Batch:
        """Upload a file of requests (JSON lines) and start a batch of them. Returns at once.

        Called again within 24 hours with the same `idempotency_key`, by any process, it returns the same batch.
        """
        return self._run(calls.start_batch(source, endpoint, window, idempotency_key, self._rule, self._counters))

    def batch_status(self, batch_id: str) -> Batch:
        """The batch as it is now."""
        return self._fetch(Batch, calls.batch(batch_id))

    def wait_for_batch(self, batch_id: str, on_progress: Callable[[Batch], None] = lambda _: None) -> Batch:
        """Wait until the batch has ended; `on_progress` gets its state at every poll."""
        return self._run(calls.wait_for_batch(batch_id, on_progress, self._rule, self._counters))

    def cancel_batch(self, batch_id: str) -> Batch:
        """Stop the batch; what was answered can be downloaded."""
        return self._fetch(Batch, calls.cancel_batch(batch_id))

    def download(self, file_id: str, target: Path) -> None:
        """Write a file to `target`; it is streamed, never whole in memory."""
        self._run(calls.exchange(calls.download(file_id, target), self._rule, self._counters))

    def system(self) -> SystemReport:
        """The whole system's statistics: counters, queues, workers."""
        return self._fetch(SystemReport, calls.system())

    def stats(self) -> ClientStatistics:
        """Statistics of this client's own requests."""
        return self._counters.read()

    def _fetch(self, model: type[ModelT], call: Call) -> ModelT:
        return self._run(calls.fetch(model, call, self._rule, self._counters))

    def _run(self, conversation: Conversation[T]) -> T:
        """Carry the conversation out; returns what it returns."""
        with self._counters.counting_errors():
            try:
                step = next(conversation)
                while True:
                    if isinstance(step, Pause):
                        time.sleep(step.seconds)
                        step = next(conversation)
                    else:
                        step = conversation.send(self._send(step))
            except StopIteration as done:
                answer: T = done.value
                return answer

    def _send(self, call: Call) -> Reply:
        try:
            with self._response(call) as response:
                if call.save_to is None or response.status_code != httpx.codes.OK:
                    response.read()
                    return reply_of(response)
                with call.save_to.open("wb") as target:
                    for chunk in response.iter_bytes():
                        target.write(chunk)
                return Reply(response.status_code)
        except httpx.TransportError as error:
            return lost(error)

    def _connection(self, following: Following) -> Generator[Event, None, Reply]:
        """Yield the events of one connection; returns how it ended."""
        try:
            with self._response(following.call()) as response:
                if response.status_code != httpx.codes.OK:
                    response.read()
                    return reply_of(response)
                for chunk in response.iter_bytes():
                    yield from following.take(chunk)
                return Reply(response.status_code)
        except httpx.TransportError as error:
            return lost(error)

    @contextmanager
    def _response(self, call: Call) -> Iterator[httpx.Response]:
        """Send a call; its response is open, and its body unread, while the block runs."""
        with request_of(call, self._timeout_s) as request:
            response = self._http.send(self._http.build_request(**request), stream=True)
            try:
                yield response
            finally:
                response.close()
