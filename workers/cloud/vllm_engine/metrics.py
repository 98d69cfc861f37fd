"""vLLM's own counters of its prefix cache."""

from typing import Any

from vllm.v1.metrics.loggers import StatLoggerBase


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
