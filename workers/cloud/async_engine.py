"""What both cloud engines share: requests in flight on an asyncio event loop with a thread of its own.

Owns handing orders to the loop from any thread, cancelling, progress, closing and the counts of verified drafts, and
that every future ends with an answer or a failure of `workers.runtime.failures`. Knows neither vLLM nor HTTP.
"""

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial

from schemas.results import DraftStatistics
from schemas.workers import VerificationStatistics
from workers.cloud.answer_order import AnswerOrder, CloudAnswer
from workers.runtime.engine import Listener
from workers.runtime.failures import EngineDied, RequestCancelled

#: How long closing waits for the loop's thread, in seconds.
JOIN_TIMEOUT_S = 5.0

#: Called with the number of tokens written so far.
ReportProgress = Callable[[int], None]


@dataclass
class _CloudCall:
    """One request in flight."""

    future: Future[CloudAnswer] = field(default_factory=Future)
    task: asyncio.Task[CloudAnswer] | None = None
    cancelled: bool = False
    num_written: int = 0

    def report_progress(self, num_written: int) -> None:
        self.num_written = num_written


class AsyncEngine(ABC):
    """See `Engine`. A subclass says how to open, answer, explain errors and release; each runs on the loop."""

    def __init__(self, thread_name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=thread_name, daemon=True)
        self._calls: dict[str, _CloudCall] = {}
        self._lock = threading.Lock()
        self._closed = False
        self._verification = VerificationStatistics()

    @abstractmethod
    async def _open(self) -> None:
        """Return when the engine can answer. Raises `EngineDied` if it never will."""

    @abstractmethod
    async def _answer(self, order: AnswerOrder, listener: Listener | None, report: ReportProgress) -> CloudAnswer:
        """Write one answer."""

    @abstractmethod
    def _explain(self, request_id: str, error: BaseException) -> Exception:
        """The failure of the request whose answer raised this."""

    @abstractmethod
    async def _release(self) -> None:
        """Release what `_open` opened, perhaps in part."""

    def start(self) -> None:
        """Block until the engine can answer."""
        self._thread.start()
        try:
            asyncio.run_coroutine_threadsafe(self._open(), self._loop).result()
        except BaseException:
            self.close()
            raise

    def submit(self, order: AnswerOrder, listener: Listener | None = None) -> Future[CloudAnswer]:
        """Begin an answer and return at once."""
        call = _CloudCall()
        call.future.set_running_or_notify_cancel()
        with self._lock:
            if self._closed:
                call.future.set_exception(EngineDied("the cloud engine is closed"))
                return call.future
            if order.request_id in self._calls:
                raise ValueError(f"request {order.request_id} is in flight already")
            self._calls[order.request_id] = call
            self._loop.call_soon_threadsafe(self._begin, call, order, listener)
        return call.future

    def cancel(self, request_id: str) -> None:
        """Cancel the request's task."""
        with self._lock:
            if call := self._calls.get(request_id):
                call.cancelled = True
                self._loop.call_soon_threadsafe(_cancel_task, call)

    def progress(self, request_id: str) -> int:
        """Tokens written so far; 0 for a request that is not in flight."""
        call = self._calls.get(request_id)
        return call.num_written if call else 0

    @property
    def in_flight(self) -> int:
        """Requests that were submitted and have not ended."""
        return len(self._calls)

    def verification_statistics(self) -> VerificationStatistics:
        """Verified drafts since the start."""
        return self._verification

    def close(self) -> None:
        """Fail what is in flight with `EngineDied`, release the engine and end the loop."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        if self._thread.is_alive():
            try:
                asyncio.run_coroutine_threadsafe(self._end_all(), self._loop).result()
            finally:
                self._loop.call_soon_threadsafe(self._loop.stop)
                self._thread.join(JOIN_TIMEOUT_S)
        self._loop.close()

    async def _end_all(self) -> None:
        with self._lock:
            tasks = [call.task for call in self._calls.values() if call.task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._release()

    def _begin(self, call: _CloudCall, order: AnswerOrder, listener: Listener | None) -> None:
        call.task = self._loop.create_task(self._answer(order, listener, call.report_progress))
        # In a callback, since a task that is cancelled before its first step never enters its coroutine.
        call.task.add_done_callback(partial(self._end, order.request_id, call))
        if call.cancelled:
            call.task.cancel()

    def _end(self, request_id: str, call: _CloudCall, task: asyncio.Task[CloudAnswer]) -> None:
        with self._lock:
            del self._calls[request_id]
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is None:
            self._count(task.result().draft)
            call.future.set_result(task.result())
        elif call.cancelled:
            call.future.set_exception(RequestCancelled(f"request {request_id} was cancelled in the cloud engine"))
        elif task.cancelled():
            call.future.set_exception(EngineDied(f"the cloud engine was closed while it wrote request {request_id}"))
        else:
            call.future.set_exception(self._explain(request_id, error))

    def _count(self, draft: DraftStatistics | None) -> None:
        sums, verified = self._verification, draft if draft and draft.verified else None
        counted = verified or DraftStatistics()
        self._verification = VerificationStatistics(
            requests=sums.requests + 1,
            drafts=sums.drafts + (verified is not None),
            drafted_tokens=sums.drafted_tokens + counted.drafted_tokens,
            accepted_tokens=sums.accepted_tokens + counted.accepted_tokens,
            rewritten_tokens=sums.rewritten_tokens + counted.rewritten_tokens,
            cloud_steps=sums.cloud_steps + (counted.cloud_steps or 0),
        )


def _cancel_task(call: _CloudCall) -> None:
    if call.task:
        call.task.cancel()
