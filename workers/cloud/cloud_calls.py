"""Requests in flight on an event loop that runs on a thread of its own, callable from any thread.

Owns what both engines share: handing work to the loop, cancelling it, how far it is, and that every future ends with
one of our own failures. Knows no engine.
"""

import asyncio
import itertools
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

from workers.cloud.cloud_engine import CloudAnswer
from workers.runtime.failures import EngineDied, RequestCancelled

#: How long closing waits for the loop's thread, in seconds.
JOIN_TIMEOUT_S = 5.0

#: Told how many tokens are written.
Progressed = Callable[[int], None]
#: Writes one answer.
Work = Callable[[Progressed], Coroutine[Any, Any, CloudAnswer]]
ResultT = TypeVar("ResultT")


@dataclass
class _CloudCall:
    request_id: str
    future: Future[CloudAnswer] = field(default_factory=Future)
    task: asyncio.Task[None] | None = None
    cancelled: bool = False
    written: int = 0

    def progressed(self, written: int) -> None:
        self.written = written


class CloudCalls:
    """`start` once, `close` once. `explain` makes one of our failures of whatever a piece of work raised."""

    def __init__(self, name: str, explain: Callable[[str, BaseException], Exception]) -> None:
        self._explain = explain
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._flights: dict[int, _CloudCall] = {}
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._closed = False

    def start(self) -> None:
        """Start the loop."""
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, ResultT]) -> ResultT:
        """Do something on the loop and block until it is done; raises what it raises."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def launch(self, request_id: str, work: Work) -> Future[CloudAnswer]:
        """Begin an answer and return at once."""
        flight = _CloudCall(request_id)
        number = next(self._numbers)
        with self._lock:
            if self._closed:
                flight.future.set_exception(EngineDied("the cloud engine is closed"))
                return flight.future
            self._flights[number] = flight
            self._loop.call_soon_threadsafe(self._begin, number, flight, work)
        return flight.future

    def cancel(self, request_id: str) -> None:
        """Cancel the work on this request. Idempotent."""
        for flight in self._named(request_id):
            flight.cancelled = True
            self._loop.call_soon_threadsafe(_cancel, flight)

    def progress(self, request_id: str) -> int:
        """Tokens written so far; 0 for a request that is not in flight."""
        return max((flight.written for flight in self._named(request_id)), default=0)

    def __len__(self) -> int:
        with self._lock:
            return len(self._flights)

    def close(self, last: Coroutine[Any, Any, None]) -> None:
        """Fail what is in flight with `EngineDied`, do one last thing on the loop and end it."""
        with self._lock:
            self._closed = True
        if not self._thread.is_alive():
            last.close()
            self._loop.close()
            return
        try:
            self.run(self._land())
            self.run(last)
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(JOIN_TIMEOUT_S)
            self._loop.close()

    async def _land(self) -> None:
        with self._lock:
            tasks = [flight.task for flight in self._flights.values() if flight.task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _named(self, request_id: str) -> list[_CloudCall]:
        with self._lock:
            return [flight for flight in self._flights.values() if flight.request_id == request_id]

    def _begin(self, number: int, flight: _CloudCall, work: Work) -> None:
        flight.task = self._loop.create_task(self._fly(number, flight, work))
        if flight.cancelled:
            flight.task.cancel()

    async def _fly(self, number: int, flight: _CloudCall, work: Work) -> None:
        try:
            answer = await work(flight.progressed)
        except BaseException as error:  # noqa: BLE001 - whatever ended it is what the future tells
            self._end(number)
            flight.future.set_exception(self._failure(flight, error))
        else:
            self._end(number)
            flight.future.set_result(answer)

    def _failure(self, flight: _CloudCall, error: BaseException) -> Exception:
        if flight.cancelled:
            return RequestCancelled(f"request {flight.request_id} was cancelled in the cloud engine")
        if isinstance(error, asyncio.CancelledError):
            return EngineDied(f"the cloud engine was closed while it wrote request {flight.request_id}")
        return self._explain(flight.request_id, error)

    def _end(self, number: int) -> None:
        with self._lock:
            self._flights.pop(number, None)


def _cancel(flight: _CloudCall) -> None:
    if flight.task:
        flight.task.cancel()
