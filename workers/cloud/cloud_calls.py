"""Calls in flight on an asyncio event loop with a thread of its own, callable from any thread.

Owns what both cloud engines share: handing calls to the loop, cancelling them, their progress, and that every future
ends with a failure of `workers.runtime.failures`. Knows no engine.
"""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from workers.cloud.answer_order import CloudAnswer
from workers.runtime.failures import EngineDied, RequestCancelled

#: How long closing waits for the loop's thread, in seconds.
JOIN_TIMEOUT_S = 5.0

#: Called with the number of tokens written so far.
ReportProgress = Callable[[int], None]
#: Writes one answer.
WriteAnswer = Callable[[ReportProgress], Coroutine[Any, Any, CloudAnswer]]
ResultT = TypeVar("ResultT")


@dataclass
class _CloudCall:
    request_id: str
    future: Future[CloudAnswer] = field(default_factory=Future)
    task: asyncio.Task[CloudAnswer] | None = None
    cancelled: bool = False
    num_written: int = 0

    def report_progress(self, num_written: int) -> None:
        self.num_written = num_written


class CloudCalls:
    """`start` once, `close` once. `explain` turns what a call raised into one of our failures."""

    def __init__(self, name: str, explain: Callable[[str, BaseException], Exception]) -> None:
        self._explain = explain
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._calls: dict[str, _CloudCall] = {}
        self._lock = threading.Lock()
        self._closed = False

    def start(self) -> None:
        """Start the loop."""
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, ResultT]) -> ResultT:
        """Run a coroutine on the loop and block until it is done; raises what it raises."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def submit(self, request_id: str, write: WriteAnswer) -> Future[CloudAnswer]:
        """Begin an answer and return at once. Raises `ValueError` if the id is in flight already."""
        call = _CloudCall(request_id)
        call.future.set_running_or_notify_cancel()
        with self._lock:
            if self._closed:
                call.future.set_exception(EngineDied("the cloud engine is closed"))
                return call.future
            if request_id in self._calls:
                raise ValueError(f"request {request_id} is in flight already")
            self._calls[request_id] = call
            self._loop.call_soon_threadsafe(self._begin, call, write)
        return call.future

    def cancel(self, request_id: str) -> None:
        """Cancel the request's call. Idempotent."""
        with self._lock:
            if call := self._calls.get(request_id):
                call.cancelled = True
                self._loop.call_soon_threadsafe(_cancel_task, call)

    def progress(self, request_id: str) -> int:
        """Tokens written so far; 0 for a request that is not in flight."""
        call = self._calls.get(request_id)
        return call.num_written if call else 0

    def __len__(self) -> int:
        return len(self._calls)

    def close(self, release: Coroutine[Any, Any, None]) -> None:
        """Fail what is in flight with `EngineDied`, run `release` on the loop and end the loop."""
        with self._lock:
            self._closed = True
        if not self._thread.is_alive():
            release.close()
            self._loop.close()
            return
        try:
            self.run(self._end_all())
            self.run(release)
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

    def _begin(self, call: _CloudCall, write: WriteAnswer) -> None:
        call.task = self._loop.create_task(write(call.report_progress))
        # In a callback, since a task that is cancelled before its first step never enters its coroutine.
        call.task.add_done_callback(partial(self._end, call))
        if call.cancelled:
            call.task.cancel()

    def _end(self, call: _CloudCall, task: asyncio.Task[CloudAnswer]) -> None:
        with self._lock:
            del self._calls[call.request_id]
        error = None if task.cancelled() else task.exception()
        if not task.cancelled() and error is None:
            call.future.set_result(task.result())
        elif call.cancelled:
            call.future.set_exception(RequestCancelled(f"request {call.request_id} was cancelled in the cloud engine"))
        elif error is None:
            closed = f"the cloud engine was closed while it wrote request {call.request_id}"
            call.future.set_exception(EngineDied(closed))
        else:
            call.future.set_exception(self._explain(call.request_id, error))


def _cancel_task(call: _CloudCall) -> None:
    if call.task:
        call.task.cancel()
