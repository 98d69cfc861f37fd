"""`Client`: Firstdraft from ordinary Python. Carries conversations out; what is said is decided in calls.py."""

import random
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
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


class Client:
    """Talks to one gateway over pooled connections; may be used from any thread.

    Use it in a `with` block, or call `close`. Every method blocks and raises `FirstdraftError`. Calls are repeated
    where that is safe: after no answer or a status that says "not now", with growing, jittered waits, or after as
    long as the gateway asks for; a submission carries an idempotency key, so that repeating it starts nothing twice.

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
        self._http = httpx.Client(
            base_url=base_url,
            headers=headers_for(api_key),
            limits=limits(max_connections),
            timeout=timeout_s,
            transport=transport,
            trust_env=False,
        )

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
        self._counters.requested()
        call = Call("POST", "/v1/jobs", json=calls.job_body(prompt, options))
        return calls.read_as(Job, self._exchange(call).content)

    def job(self, job_id: str) -> Job:
        """The job as it is now."""
        return calls.read_as(Job, self._exchange(Call("GET", calls.job_path(job_id))).content)

    def wait(self, job_id: str, timeout_s: float | None = None) -> Job:
        """The job once it has finished, however it did. Raises `NotInTime`; the job goes on then."""
        return self._carry_out(calls.wait_for(job_id, timeout_s, self._rule, self._counters))

    def result(self, job_id: str, timeout_s: float | None = None) -> Result:
        """The answer, waiting for it. Raises `JobFailed`, `JobCancelled` or `NotInTime`."""
        job = self.wait(job_id, timeout_s)
        with self._counters.counting_errors():
            return calls.result_of(job)

    def cancel(self, job_id: str) -> Job:
        """Cancel the job; one that has finished stays as it is."""
        return calls.read_as(Job, self._exchange(Call("DELETE", calls.job_path(job_id))).content)

    def events(self, job_id: str) -> Iterator[Event]:
        """What happens to the job, from its beginning to its end, over as many connections as that takes."""
        following = Following(job_id, self._rule, self._counters)
        with self._counters.counting_errors():
            while True:
                ended = yield from self._connection(following)
                if following.is_over(ended):
                    return
                time.sleep(following.lost(ended, random.random()))  # noqa: S311 - jitter

    def stream(self, prompt: Prompt, **options: Any) -> Iterator[Event]:
        """Send a prompt and give its events. A `for` loop that is left early does not cancel the job."""
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
        """Send a prompt and wait for its answer.

        `use_draft_verify`: whether the cloud verifies the draft or writes from nothing. `use_confidence_check`:
        whether a sure draft leaves at once. One that is None counts as true where the other is given; both off, the
        draft is the answer. `options` are those of `POST /v1/jobs`. Raises `NotInTime` after `timeout_s`.
        """
        options.setdefault("policy", calls.policy_of(use_draft_verify, use_confidence_check))
        began = time.perf_counter()
        self._counters.requested()
        body = calls.job_body(prompt, {"max_tokens": max_tokens, **options})
        job = self._carry_out(calls.answer(body, timeout_s, self._rule, self._counters))
        with self._counters.counting_errors():
            inference = Inference.of(job, calls.result_of(job), (time.perf_counter() - began) * 1000)
        self._counters.answered(inference.latency_ms)
        return inference

    def infer_many(self, prompts: Iterable[Prompt], *, concurrency: int = 8, **options: Any) -> Iterator[Inference]:
        """Answers in the order of their prompts, with at most `concurrency` requests in flight.

        Prompts are taken as there is room for them, so there may be any number. The first error ends it.
        """
        with ThreadPoolExecutor(concurrency, thread_name_prefix="firstdraft-client") as pool:
            waiting: deque[Future[Inference]] = deque()
            try:
                for prompt in prompts:
                    if len(waiting) == concurrency:
                        yield waiting.popleft().result()
                    waiting.append(pool.submit(self.infer, prompt, **options))
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    def start_batch(self, source: Path, *, endpoint: str = "/v1/jobs", window: str = "24h") -> Batch:
        """Upload a file of requests (JSON lines) and have them run. Gives the batch at once."""
        stored = calls.read_as(StoredFile, self._exchange(calls.upload(source)).content)
        return calls.read_as(Batch, self._exchange(calls.new_batch(stored.id, endpoint, window)).content)

    def batch_status(self, batch_id: str) -> Batch:
        """How far the batch is."""
        return calls.read_as(Batch, self._exchange(calls.batch(batch_id)).content)

    def wait_for_batch(self, batch_id: str, told: Callable[[Batch], None] = lambda _: None) -> Batch:
        """The batch once it has ended; `told` of how far it is as it goes."""
        return self._carry_out(calls.follow_batch(batch_id, told, self._rule, self._counters))

    def cancel_batch(self, batch_id: str) -> Batch:
        """Stop the batch; what was answered can be downloaded."""
        return calls.read_as(Batch, self._exchange(calls.cancel_batch(batch_id)).content)

    def download(self, file_id: str, target: Path) -> None:
        """Write a file to `target`, never whole in memory."""
        self._exchange(calls.download(file_id, target))

    def system(self) -> SystemReport:
        """What the gateway says of the whole system: counters, queues, workers."""
        return calls.read_as(SystemReport, self._exchange(Call("GET", "/v1/stats")).content)

    def stats(self) -> ClientStatistics:
        """What this client has seen."""
        return self._counters.read()

    def _connection(self, following: Following) -> Generator[Event, None, Reply]:
        """One connection's events; gives how it ended."""
        call = following.call()
        try:
            with self._http.stream(
                call.method, call.path, headers=dict(call.headers), timeout=timeouts(self._timeout_s, call)
            ) as response:
                if response.status_code != httpx.codes.OK:
                    response.read()
                    return replied(response)
                lines = EventLines()
                for chunk in response.iter_bytes():
                    for line in lines.take(chunk):
                        yield from following.take(line)
                return Reply(response.status_code)
        except httpx.TransportError as error:
            return unanswered(error)

    def _exchange(self, call: Call) -> Reply:
        return self._carry_out(calls.exchange(call, self._rule, self._counters))

    def _carry_out(self, conversation: Conversation[T]) -> T:
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
            with form_of(call) as form:
                request = self._http.build_request(call.method, call.path, **form, **options_of(call, self._timeout_s))
                response = self._http.send(request, stream=True)
                try:
                    if call.save_to is None or response.status_code != httpx.codes.OK:
                        response.read()
                        return replied(response)
                    with call.save_to.open("wb") as target:
                        for chunk in response.iter_bytes():
                            target.write(chunk)
                    return Reply(response.status_code)
                finally:
                    response.close()
        except httpx.TransportError as error:
            return unanswered(error)
