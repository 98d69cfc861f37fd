"""`Client`: Firstdraft from ordinary Python. What it does is in calls.py; here is the I/O."""

import random
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
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


def _blocking(
    method: Callable[Concatenate[Conversations, P], Conversation[T]],
) -> Callable[Concatenate["Client", P], T]:
    """The method of a client that carries the conversation out, with the same parameters."""

    def call(self: "Client", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._run(method(self._conversations, *args, **kwargs))

    describe(call, method)
    return call


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
        self._conversations = Conversations(retries, Counters())
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

    submit = _blocking(Conversations.submit)
    job = _blocking(Conversations.job)
    wait = _blocking(Conversations.wait)
    result = _blocking(Conversations.result)
    cancel = _blocking(Conversations.cancel)
    infer = _blocking(Conversations.infer)
    start_batch = _blocking(Conversations.start_batch)
    batch_status = _blocking(Conversations.batch_status)
    wait_for_batch = _blocking(Conversations.wait_for_batch)
    cancel_batch = _blocking(Conversations.cancel_batch)
    download = _blocking(Conversations.download)
    system = _blocking(Conversations.system)

    def events(self, job_id: str) -> Iterator[Event]:
        """The job's events from its beginning to its end. Reconnects, and resumes, as often as needed."""
        following = Following(job_id, self._conversations.rule, self._conversations.counters)
        with self._conversations.counters.counting_errors():
            while True:
                reply = yield from self._connection(following)
                if following.is_over(reply):
                    return
                time.sleep(following.delay_s(reply, random.random()))  # noqa: S311 - jitter

    def stream(self, prompt: Prompt, **options: Any) -> Iterator[Event]:
        """Send a prompt and yield its events. Leaving the loop early does not cancel the job."""
        return self.events(self.submit(prompt, **options).id)

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

    def stats(self) -> ClientStatistics:
        """Statistics of this client's own requests."""
        return self._conversations.counters.read()

    def _run(self, conversation: Conversation[T]) -> T:
        """Carry the conversation out; returns what it returns."""
        with self._conversations.counters.counting_errors():
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
