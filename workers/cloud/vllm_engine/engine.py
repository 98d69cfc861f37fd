"""vLLM's `AsyncLLM` as a cloud engine: its event loop on a thread of its own, callable from any thread.

Owns the life of the engine and of the requests in flight on it. How one answer is written is `writing`'s business.
"""

import asyncio
import itertools
import shutil
import tempfile
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from config.settings import CloudSettings
from schemas.results import FailureKind
from schemas.workers import CacheStatistics, VerificationStatistics
from workers.cloud.answering import AnswerOrder, CloudAnswer, Listener
from workers.cloud.vllm_engine.environment import check_release, prepare_environment
from workers.failures import EngineDied, RequestCancelled, RequestRefused

#: How long closing waits for vLLM's processes, in seconds; what is left then is killed by vLLM itself.
CLOSE_TIMEOUT_S = 8.0


@dataclass
class _Flight:
    request_id: str
    future: Future[CloudAnswer] = field(default_factory=Future)
    task: asyncio.Task[None] | None = None
    cancelled: bool = False
    written: int = 0


class VllmEngine:
    """See `CloudEngine`. `start` once, `close` once."""

    engine_name = "vllm"

    def __init__(self, settings: CloudSettings, model_path: str) -> None:
        self.model_name = Path(model_path).name or model_path
        self._settings = settings
        self._model_path = model_path
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="cloud-engine", daemon=True)
        self._flights: dict[int, _Flight] = {}
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._folder = tempfile.mkdtemp(prefix="firstdraft-")
        self._llm: Any = None
        self._closed = False

    def start(self) -> None:
        """Block until vLLM has loaded the model: a minute on a small machine."""
        check_release()
        prepare_environment(self._model_path)
        self._thread.start()
        try:
            self._run(self._start())
        except Exception as error:
            self.close()
            raise EngineDied(f"vLLM did not start with {self._model_path}: {error}") from error

    async def _start(self) -> None:
        # vLLM is imported here, after its environment is set.
        from vllm.v1.engine.async_llm import AsyncLLM  # noqa: PLC0415

        from workers.cloud.vllm_engine.metrics import PrefixCacheCounter, VerificationCounter  # noqa: PLC0415
        from workers.cloud.vllm_engine.prompts import Prompts  # noqa: PLC0415
        from workers.cloud.vllm_engine.starting import engine_arguments  # noqa: PLC0415
        from workers.cloud.vllm_engine.writing import AnswerWriter  # noqa: PLC0415

        self._cache_counter = PrefixCacheCounter()
        self._verification_counter = VerificationCounter()
        self._llm = AsyncLLM.from_engine_args(
            engine_arguments(self._settings, self._model_path, f"ipc://{self._folder}/kv"),
            stat_loggers=[self._cache_counter.logger_factory],
        )
        self._cache_config = self._llm.vllm_config.cache_config
        await self._llm.collective_rpc("bind_proposer")
        tokenizer = self._llm.get_tokenizer()
        prompts = Prompts(tokenizer, self._llm.model_config.max_model_len)
        self.vocabulary = prompts.vocabulary
        self._writer = AnswerWriter(self._llm, tokenizer, prompts, self._settings.draft_verifier)

    def submit(self, order: AnswerOrder, listener: Listener | None = None) -> Future[CloudAnswer]:
        """Begin an answer and return at once."""
        flight = _Flight(order.request_id)
        if not self.alive:
            flight.future.set_exception(EngineDied("the vLLM engine is not running"))
            return flight.future
        number = next(self._numbers)
        with self._lock:
            self._flights[number] = flight
        self._loop.call_soon_threadsafe(self._launch, number, flight, order, listener)
        return flight.future

    def _launch(self, number: int, flight: _Flight, order: AnswerOrder, listener: Listener | None) -> None:
        flight.task = self._loop.create_task(self._answer(number, flight, order, listener))
        if flight.cancelled:
            flight.task.cancel()

    async def _answer(self, number: int, flight: _Flight, order: AnswerOrder, listener: Listener | None) -> None:
        def progressed(written: int) -> None:
            flight.written = written

        try:
            answer = await self._writer.write(order, listener, progressed)
        except BaseException as error:  # noqa: BLE001 - whatever ended it is what the future tells
            self._forget(number)
            flight.future.set_exception(self._failure(error, flight))
            return
        self._forget(number)
        if order.use_cache:
            self._cache_counter.answered(answer.cached_tokens)
        self._verification_counter.answered(answer.draft)
        flight.future.set_result(answer)

    def _failure(self, error: BaseException, flight: _Flight) -> Exception:
        from vllm.exceptions import VLLMClientError  # noqa: PLC0415
        from vllm.v1.engine.exceptions import EngineDeadError  # noqa: PLC0415

        if flight.cancelled:
            return RequestCancelled(f"request {flight.request_id} was cancelled in the cloud engine")
        if isinstance(error, (asyncio.CancelledError, EngineDeadError)) or not self.alive:
            return EngineDied(f"vLLM ended while it wrote request {flight.request_id}")
        if isinstance(error, RequestRefused):
            return error
        if isinstance(error, (VLLMClientError, ValueError)):
            return RequestRefused(FailureKind.UNSUPPORTED_OPTION, f"vLLM refused the request: {error}")
        return RequestRefused(FailureKind.ENGINE_ERROR, f"vLLM failed on the request: {error!r}")

    def _forget(self, number: int) -> None:
        with self._lock:
            self._flights.pop(number, None)

    def _named(self, request_id: str) -> list[_Flight]:
        with self._lock:
            return [flight for flight in self._flights.values() if flight.request_id == request_id]

    def cancel(self, request_id: str) -> None:
        """Abort the request in vLLM."""
        for flight in self._named(request_id):
            flight.cancelled = True
            self._loop.call_soon_threadsafe(_cancel, flight)

    def progress(self, request_id: str) -> int:
        """Tokens written so far."""
        return max((flight.written for flight in self._named(request_id)), default=0)

    def cache_statistics(self) -> CacheStatistics:
        """Taken from vLLM's own metrics."""
        cache = self._cache_config
        return CacheStatistics(
            enabled=self._settings.kv_cache.enabled,
            max_tokens=(cache.num_gpu_blocks or 0) * cache.block_size,
            hits=self._cache_counter.hits,
            misses=self._cache_counter.misses,
            tokens_saved=self._cache_counter.hit_tokens,
        )

    def verification_statistics(self) -> VerificationStatistics:
        """Verified drafts since the start."""
        return self._verification_counter.statistics()

    @property
    def in_flight(self) -> int:
        """Answers that are being written."""
        with self._lock:
            return len(self._flights)

    @property
    def alive(self) -> bool:
        """Whether vLLM's processes run."""
        llm = self._llm
        return llm is not None and not self._closed and not llm.errored

    def close(self) -> None:
        """End vLLM's processes and fail what is in flight."""
        if self._closed:
            return
        self._closed = True
        if self._thread.is_alive():
            self._run(self._stop())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(CLOSE_TIMEOUT_S)
        shutil.rmtree(self._folder, ignore_errors=True)

    async def _stop(self) -> None:
        with self._lock:
            tasks = [flight.task for flight in self._flights.values() if flight.task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._llm is not None:
            llm, self._llm = self._llm, None
            await asyncio.to_thread(llm.shutdown, CLOSE_TIMEOUT_S)

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()


def _cancel(flight: _Flight) -> None:
    if flight.task:
        flight.task.cancel()
