"""vLLM's own counters of its prefix cache, and ours of verified drafts."""

from typing import Any

from vllm.v1.metrics.loggers import StatLoggerBase

from schemas.results import DraftStatistics
from schemas.workers import VerificationStatistics


class PrefixCacheCounter:
    """Sums of vLLM's prefix cache metrics since the start."""

    def __init__(self) -> None:
        self.hit_tokens = 0
        self.hits = 0
        self.misses = 0

    def answered(self, cached_tokens: int) -> None:
        """Count an answered request that was allowed to read the cache."""
        self.hits += cached_tokens > 0
        self.misses += cached_tokens == 0

    def logger_factory(self, _config: Any, _engine_index: int = 0) -> StatLoggerBase:
        """What vLLM calls to make the logger that it reports to."""
        return _Logger(self)


class _Logger(StatLoggerBase):
    """Receives vLLM's statistics of each step."""

    def __init__(self, counter: PrefixCacheCounter) -> None:
        self._counter = counter

    def record(
        self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0
    ) -> None:
        del iteration_stats, mm_cache_stats, engine_idx
        if scheduler_stats is not None:
            self._counter.hit_tokens += scheduler_stats.prefix_cache_stats.hits

    def log_engine_initialized(self) -> None:
        """Logs nothing: the worker logs its own start."""


class VerificationCounter:
    """Sums over the drafts verified since the start."""

    def __init__(self) -> None:
        self.sums = VerificationStatistics()

    def answered(self, draft: DraftStatistics | None) -> None:
        """Count an answered request, with the statistics of its draft if it had one."""
        sums, of_draft = self.sums, draft or DraftStatistics()
        self.sums = VerificationStatistics(
            requests=sums.requests + 1,
            drafts=sums.drafts + (draft is not None),
            drafted_tokens=sums.drafted_tokens + of_draft.drafted_tokens,
            accepted_tokens=sums.accepted_tokens + of_draft.accepted_tokens,
            rewritten_tokens=sums.rewritten_tokens + of_draft.rewritten_tokens,
            cloud_steps=sums.cloud_steps + (of_draft.cloud_steps or 0),
        )
