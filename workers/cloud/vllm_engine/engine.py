"""vLLM's `AsyncLLM` as a cloud engine.

Owns the life of the engine; `writing` writes an answer.
"""

import asyncio
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from config.settings import CloudSettings
from schemas.requests import Message
from schemas.results import FailureKind
from schemas.workers import CacheStatistics
from workers.cloud.answer_order import AnswerOrder, CloudAnswer
from workers.cloud.async_engine import AsyncEngine, ReportProgress
from workers.cloud.vllm_engine.environment import check_release, prepare_environment
from workers.runtime.engine import Listener
from workers.runtime.failures import EngineDied, RequestRefused

#: How long closing waits for vLLM's processes, in seconds; vLLM kills what is left then.
CLOSE_TIMEOUT_S = 0.5

log = logging.getLogger(__name__)


class VllmEngine(AsyncEngine):
    """See `Engine`. `start` once, `close` once."""

    engine_name = "vllm"

    def __init__(self, settings: CloudSettings, model_path: str) -> None:
        super().__init__("cloud-engine")
        self.model_name = Path(model_path).name or model_path
        self._settings = settings
        self._model_path = model_path
        self._folder = tempfile.TemporaryDirectory(prefix="firstdraft-", ignore_cleanup_errors=True)
        self._llm: Any = None
        self._writer: Any = None
        self._options: Any = None
        self._events: Any = None

    async def _open(self) -> None:
        release = check_release()
        prepare_environment(self._model_path, eager=self._settings.model.eager)
        try:
            repaired = await self._load()
        except Exception as error:
            raise EngineDied(f"vLLM {release} did not start with {self._model_path}: {error}") from error
        log.info(
            "cloud_engine_started engine=vllm release=%s model=%s sampling_repaired=%s",
            release,
            self.model_name,
            repaired,
        )

    async def _load(self) -> bool:
        """Load the model: a minute on a small machine. Whether vLLM's sampling had to be repaired."""
        # vLLM is imported here, after its environment is set.
        from vllm.v1.engine.async_llm import AsyncLLM  # noqa: PLC0415

        from workers.cloud.vllm_engine.kv_events import KvEventReader  # noqa: PLC0415
        from workers.cloud.vllm_engine.metrics import PrefixCacheCounter  # noqa: PLC0415
        from workers.cloud.vllm_engine.options import Options  # noqa: PLC0415
        from workers.cloud.vllm_engine.prompts import Prompts  # noqa: PLC0415
        from workers.cloud.vllm_engine.starting import engine_arguments  # noqa: PLC0415
        from workers.cloud.vllm_engine.writing import AnswerWriter  # noqa: PLC0415

        endpoint = f"ipc://{self._folder.name}/kv"
        self._events = KvEventReader(endpoint)
        self._cache_counter = PrefixCacheCounter()
        self._llm = AsyncLLM.from_engine_args(
            engine_arguments(self._settings, self._model_path, endpoint),
            stat_loggers=[self._cache_counter.logger_factory],
        )
        self._cache_config = self._llm.vllm_config.cache_config
        model = self._llm.model_config
        self._prompts = Prompts(self._llm.get_tokenizer(), model.max_model_len)
        self._options = Options(self._llm.get_tokenizer(), model.get_vocab_size())
        self._writer = AnswerWriter(self._llm, self._prompts, self._options, self._settings.draft_verifier)
        return any(await self._llm.collective_rpc("bind_proposer"))

    @property
    def vocabulary(self) -> str:
        """Fingerprint of the model's vocabulary."""
        fingerprint: str = self._prompts.vocabulary
        return fingerprint

    async def _answer(self, order: AnswerOrder, listener: Listener | None, report: ReportProgress) -> CloudAnswer:
        if not self.alive:
            raise EngineDied("the vLLM engine is not running")
        answer: CloudAnswer = await self._writer.write(order, listener, report)
        if order.use_cache:
            self._cache_counter.answered(answer.cached_tokens)
        return answer

    def _explain(self, request_id: str, error: BaseException) -> Exception:
        from vllm.exceptions import VLLMClientError  # noqa: PLC0415
        from vllm.v1.engine.exceptions import EngineDeadError  # noqa: PLC0415

        if isinstance(error, EngineDeadError) or not self.alive:
            return EngineDied(f"vLLM ended while it wrote request {request_id}")
        if isinstance(error, RequestRefused):
            return error
        if isinstance(error, (VLLMClientError, ValueError)):
            return RequestRefused(FailureKind.UNSUPPORTED_OPTION, f"vLLM refused the request: {error}")
        return RequestRefused(FailureKind.ENGINE_ERROR, f"vLLM failed on the request: {error!r}")

    def prompt_of(self, messages: Sequence[Message]) -> list[int]:
        """The conversation in the model's tokens. Raises `RequestRefused` if it is too long."""
        tokens: list[int] = self._prompts.tokens(messages)
        return tokens

    def tokens_of(self, text: str) -> list[int]:
        """A piece of text in the model's tokens."""
        tokens: list[int] = self._prompts.text_tokens(text)
        return tokens

    def cached_prefix_tokens(self, token_ids: Sequence[int], namespace: str) -> int:
        """How many of a prompt's first tokens the cache holds for the namespace, by the events received so far."""
        cached: int = self._events.prefix_tokens(token_ids, namespace)
        return cached

    @property
    def cache_losses(self) -> int:
        """Rises whenever the cache gives something up, or its content is no longer known."""
        losses: int = self._events.losses
        return losses

    @property
    def cached_prefixes(self) -> Self | None:
        """The prefix cache; None where it is off."""
        return self if self._settings.kv_cache.enabled else None

    def cache_statistics(self) -> CacheStatistics:
        """From vLLM's own metrics and events."""
        blocks, tokens, evictions = self._events.totals()
        cache = self._cache_config
        return CacheStatistics(
            enabled=self._settings.kv_cache.enabled,
            entries=blocks,
            tokens=tokens,
            max_tokens=(cache.num_gpu_blocks or 0) * cache.block_size,
            hits=self._cache_counter.hits,
            misses=self._cache_counter.misses,
            tokens_saved=self._cache_counter.hit_tokens,
            evictions=evictions,
        )

    @property
    def alive(self) -> bool:
        """Whether vLLM's processes run."""
        llm = self._llm
        return llm is not None and not self._closed and not llm.errored

    async def _release(self) -> None:
        llm, self._llm, self._writer = self._llm, None, None
        if llm is not None:
            await asyncio.to_thread(llm.shutdown, CLOSE_TIMEOUT_S)
        for opened in (self._events, self._options):
            if opened is not None:
                opened.close()
        self._folder.cleanup()
