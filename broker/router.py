"""Routes requests: gathers what `routing` decides by, and tells the prefix index what was decided.

Three round trips at most: the workers' loads, the prefix index (which may be on another server), and what was decided.
Which workers there are is known to within half a second, and which of them live at once: a worker counts while its
queue's lease does, and a job is put on its queue only while that lasts (broker/run_queues.py).
"""

import logging
import random
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Self

from redis import Redis
from redis.exceptions import RedisError

from broker.connection import connect_index
from broker.prefix_blocks import block_hashes, canonical_bytes
from broker.prefix_index import PrefixIndex, member_name
from broker.presence import Presence
from broker.routing import BYTES_PER_TOKEN, Candidate, Demand, choose, shortlist
from broker.run_queues import RunQueues
from config.settings import Settings
from schemas.policy import Tier
from schemas.requests import AcceptedRequest
from schemas.routing_decision import RoutingDecision, RoutingPolicy
from schemas.workers import WorkerReport

log = logging.getLogger(__name__)

#: Seconds for which the list of live workers is used before it is read again.
REFRESH_S = 0.5
#: Seconds for which the prefix index is left alone after it did not answer.
INDEX_REST_S = 5.0


class Router:
    """Routes requests of any tier. Safe to share between threads."""

    def __init__(
        self,
        redis: Redis,
        presence: Presence,
        index: PrefixIndex | None,
        *,
        block_bytes: int,
        policy: RoutingPolicy,
        max_waiting: int,
    ) -> None:
        self._presence = presence
        self._index = index
        self._block_bytes = block_bytes
        self._policy = policy
        self._max_waiting = max_waiting
        self._queues = {tier: RunQueues(redis, tier) for tier in Tier}
        self._lots = random.Random()  # noqa: S311 - breaks ties
        self._lock = threading.Lock()
        self._live: list[WorkerReport] = []
        self._live_until_s = self._index_rests_until_s = 0.0

    @classmethod
    def configured(cls, settings: Settings, redis: Redis, presence: Presence, num_threads: int = 1) -> Self:
        """As the settings say, for so many threads that route at once."""
        prefixes, routing = settings.prefix_index, settings.routing
        index = None
        if prefixes.enabled:
            index = PrefixIndex(connect_index(settings.redis, num_threads), prefixes.entry_ttl_s)
        return cls(
            redis,
            presence,
            index,
            block_bytes=prefixes.block_bytes,
            policy=RoutingPolicy(routing.policy),
            max_waiting=routing.max_waiting,
        )

    def route(self, request: AcceptedRequest, tier: Tier) -> RoutingDecision:
        """Where the request's part in this tier should go, and why. Raises Redis's errors, but not the index's."""
        able = [report for report in self._workers() if report.tier == tier and report.ready]
        reports = {member_name(report.worker_id, report.epoch): report for report in able}
        counts_cache = self._policy is RoutingPolicy.PREFIX and request.policy.kv_caches
        blocks = self._blocks(request, reports.values()) if counts_cache else {}
        # The index also names workers that have died.
        held = {member: num for member, num in self._held(blocks.values()).items() if member in reports}
        loads = self._queues[tier].loads(shortlist(list(reports), held, self._lots))
        candidates = [
            Candidate(
                worker=member,
                capacity=reports[member].capacity,
                speed=reports[member].work_tokens_per_s,
                waiting_tokens=load.tokens,
                num_jobs=load.num_jobs,
                recent_tokens=load.recent_tokens,
                cached_tokens=held.get(member, 0) * self._block_bytes // BYTES_PER_TOKEN,
            )
            for member, load in loads.items()
            if load.alive
        ]
        demand = Demand.of(len(canonical_bytes(request.messages)), request.sampling.max_tokens)
        route = choose(demand, candidates, self._policy, self._max_waiting, self._lots)
        if route.worker is not None:
            self._expect(route.worker, blocks.get(reports[route.worker].model, ()))
        log.info(
            "request_routed request_id=%s tier=%s worker=%s reason=%s prompt_tokens=%d cached_tokens=%d"
            " most_cached_tokens=%d cost_s=%.3f candidates=%d passed_over=%d",
            request.request_id,
            tier,
            route.worker,
            route.reason,
            route.prompt_tokens,
            route.cached_tokens,
            route.most_cached_tokens,
            route.cost_s,
            route.num_candidates,
            route.num_passed_over,
        )
        return route

    def _workers(self) -> list[WorkerReport]:
        with self._lock:
            now_s = time.monotonic()
            if now_s >= self._live_until_s:
                self._live = self._presence.live()
                self._live_until_s = now_s + REFRESH_S
            return self._live

    def _blocks(self, request: AcceptedRequest, reports: Iterable[WorkerReport]) -> Mapping[str, Sequence[bytes]]:
        """The prompt's blocks for each model that is there: model and namespace are part of what is hashed."""
        return {
            model: block_hashes(
                request.messages, model=model, namespace=request.cache_namespace, block_bytes=self._block_bytes
            )
            for model in {report.model for report in reports}
        }

    def _held(self, prompts: Iterable[Sequence[bytes]]) -> dict[str, int]:
        """How many of the blocks each worker holds; empty while the index does not answer."""
        held: dict[str, int] = {}
        if self._index is not None and time.monotonic() >= self._index_rests_until_s:
            try:
                for blocks in prompts:
                    held |= self._index.look_up(blocks)
            except RedisError as error:
                self._let_index_rest(error)
        return held

    def _expect(self, worker: str, blocks: Sequence[bytes]) -> None:
        if self._index is not None and time.monotonic() >= self._index_rests_until_s:
            try:
                self._index.expect(worker, blocks)
            except RedisError as error:
                self._let_index_rest(error)

    def _let_index_rest(self, error: RedisError) -> None:
        self._index_rests_until_s = time.monotonic() + INDEX_REST_S
        log.warning("prefix_index_away rest_s=%g error=%s", INDEX_REST_S, error)
