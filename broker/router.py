"""Routes requests: collects the inputs of `routing`, and records its decisions in the prefix index.

Two round trips at most: one for the workers' loads, which the caller may have read already, and one for the prefix
index, which may be on another server. Decisions are recorded, and the list of workers is read, in the background. Even
if that list is outdated, a request is put only into the line of a live worker (`broker.presence.LIFE_S`).
"""

import logging
import math
import random
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Self

from redis.exceptions import RedisError

from broker.background import Loop
from broker.connection import connect_index
from broker.prefix_blocks import block_hashes, canonical_bytes
from broker.prefix_index import PrefixIndex
from broker.presence import Presence, worker_name
from broker.request_store import RequestStore
from broker.routing import BYTES_PER_TOKEN, COMPARED, Candidate, Demand, WorkerLoad, choose, shortlist
from config.settings import Settings
from schemas.policy import Tier
from schemas.requests import AcceptedRequest
from schemas.routing_decision import RoutingDecision, RoutingPolicy
from schemas.workers import WorkerReport

log = logging.getLogger(__name__)

#: Seconds after which the list of live workers is read again in the background, and seconds after which it is too old
#: to route by, so that a request waits until it has been read.
REFRESH_S, TOO_OLD_S = 0.5, 5.0
#: Seconds for which the prefix index is not used after it did not answer.
INDEX_REST_S = 5.0
#: Decisions that may wait to be recorded in the index. If it is too slow, the oldest are dropped.
MOST_EXPECTED = 1000
#: Seconds between two background steps if nothing wakes the loop.
IDLE_S = 60.0


class Router:
    """Routes requests of any tier. Safe to share between threads."""

    def __init__(
        self,
        store: RequestStore,
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
        self._store = store
        self._rng = random.Random()  # noqa: S311 - breaks ties
        self._lock = threading.Lock()
        self._live: list[WorkerReport] = []
        self._read_at_s, self._index_rests_until_s = -math.inf, 0.0
        self._expected: deque[tuple[str, Sequence[bytes]]] = deque(maxlen=MOST_EXPECTED)
        #: Records decisions in the prefix index and reads the list of workers. Started by the router's owner.
        self.loop = Loop("router", self._in_background, every_s=IDLE_S)

    @classmethod
    def configured(cls, settings: Settings, store: RequestStore, presence: Presence, num_threads: int = 1) -> Self:
        """A router with the configured options, for `num_threads` threads that route at the same time."""
        prefixes, routing = settings.prefix_index, settings.routing
        index = None
        if prefixes.enabled:
            index = PrefixIndex(connect_index(settings.redis, num_threads), prefixes.entry_ttl_s)
        return cls(
            store,
            presence,
            index,
            block_bytes=prefixes.block_bytes,
            policy=RoutingPolicy(routing.policy),
            max_waiting=routing.max_waiting,
        )

    def to_survey(self, tier: Tier) -> list[str]:
        """The workers whose loads `route` will read; none if there are too many to compare all of them."""
        workers = list(self._able(tier))
        return workers if len(workers) <= COMPARED else []

    def route(
        self, request: AcceptedRequest, tier: Tier, known: Mapping[str, WorkerLoad] | None = None
    ) -> RoutingDecision:
        """Choose a worker of the tier for the request. Raises Redis's errors, but not those of the prefix index.

        `known`: workers' loads that were just read. If the load of a compared worker is missing, all are read.
        """
        reports = self._able(tier)
        counts_cache = self._policy is RoutingPolicy.PREFIX and request.policy.kv_caches
        blocks = self._blocks(request, reports.values()) if counts_cache else {}
        # The index also names workers that have died.
        held = {member: num for member, num in self._held(blocks.values()).items() if member in reports}
        compared = shortlist(list(reports), held, self._rng)
        loads = known or {}
        if not loads.keys() >= set(compared):
            loads = self._store.worker_loads(tier, compared)
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
            for member, load in ((member, loads[member]) for member in compared)
            if load.alive
        ]
        demand = Demand.of(len(canonical_bytes(request.messages)), request.sampling.max_tokens)
        route = choose(demand, candidates, self._policy, self._max_waiting, self._rng)
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

    def _able(self, tier: Tier) -> dict[str, WorkerReport]:
        """The live workers of the tier that are ready for work, by name."""
        return {worker_name(report): report for report in self._workers() if report.tier == tier and report.ready}

    def _workers(self) -> list[WorkerReport]:
        """The live workers, from a list at most `TOO_OLD_S` old. Blocks to read it if it is older."""
        age_s = time.monotonic() - self._read_at_s
        if age_s >= TOO_OLD_S:
            with self._lock:
                if time.monotonic() - self._read_at_s >= TOO_OLD_S:
                    self._read_workers()
        elif age_s >= REFRESH_S:
            self.loop.wake()
        return self._live

    def _read_workers(self) -> None:
        self._live = self._presence.live()
        self._read_at_s = time.monotonic()

    def _in_background(self) -> None:
        self._tell_expected()
        if time.monotonic() - self._read_at_s >= REFRESH_S:
            self._read_workers()

    def _blocks(self, request: AcceptedRequest, reports: Iterable[WorkerReport]) -> Mapping[str, Sequence[bytes]]:
        """The prompt's blocks for each of the workers' models: model and namespace are part of the hashes."""
        return {
            model: block_hashes(
                request.messages, model=model, namespace=request.cache_namespace, block_bytes=self._block_bytes
            )
            for model in {report.model for report in reports}
        }

    def _held(self, prompts: Iterable[Sequence[bytes]]) -> dict[str, int]:
        """How many of the first blocks each worker holds; empty while the index does not answer."""
        held: dict[str, int] = {}
        self._tell_expected()  # in a burst with the same prefix, each request must see where the previous one went
        if self._index is not None and time.monotonic() >= self._index_rests_until_s:
            try:
                for blocks in filter(None, prompts):
                    held |= self._index.look_up(blocks)
            except RedisError as error:
                self._let_index_rest(error)
        return held

    def _expect(self, worker: str, blocks: Sequence[bytes]) -> None:
        """Record in the background that the worker is expected to hold these blocks."""
        if self._index is not None and blocks:
            self._expected.append((worker, blocks))
            self.loop.wake()

    def _tell_expected(self) -> None:
        """Record in the index the decisions that are not recorded yet. May be called from any thread."""
        while self._index is not None and (waiting := _popped(self._expected)) is not None:
            worker, blocks = waiting
            if time.monotonic() >= self._index_rests_until_s:
                try:
                    self._index.expect(worker, blocks)
                except RedisError as error:
                    self._let_index_rest(error)

    def _let_index_rest(self, error: RedisError) -> None:
        self._index_rests_until_s = time.monotonic() + INDEX_REST_S
        log.warning("prefix_index_away rest_s=%g error=%s", INDEX_REST_S, error)


def _popped(waiting: deque[tuple[str, Sequence[bytes]]]) -> tuple[str, Sequence[bytes]] | None:
    """The oldest entry, or None if there is none, perhaps because another thread took the last."""
    try:
        return waiting.popleft()
    except IndexError:
        return None
