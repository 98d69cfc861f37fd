"""A discrete-event simulation of many workers: the real routing code on simulated engines and a simulated clock.

A worker steps as the edge engine does: each step decodes one token of every answer and prefills a chunk of one prompt,
and its duration is linear in both. Its cache is an LRU of blocks. The index learns of cached blocks half a publishing
tick late, and of routed requests at once. Routing, work stealing and the prefill budget are the product's own code.
"""

import heapq
import math
import random
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate, islice, takewhile

from broker.prefix_blocks import block_hashes, canonical_bytes
from broker.prefix_index import ROUTED_S
from broker.routing import (
    BYTES_PER_TOKEN,
    COMPARED_HOLDERS,
    Candidate,
    Demand,
    choose,
    shortlist,
)
from broker.scripts import COMPARED_LINES, RECENT_S
from experiments.routing_workload import Arrival
from schemas.routing_decision import RoutingDecision, RoutingPolicy
from workers.edge.prefill_budget import PrefillBudget
from workers.runtime.prefix_publisher import TICK_S
from workers.runtime.rq_worker import NEAR_LOOK_S
from workers.runtime.throughput import Throughput


@dataclass(frozen=True)
class Machine:
    """The cost of a step: `step_s`, plus `answer_s` per answer and `prompt_token_s` per prompt token in it.

    Each of these tokens costs `attention_s` more per token before it in its conversation. Prompt tokens in a step
    without answers cost `reading_attention_s` instead, as llama.cpp then computes many at once.
    """

    step_s: float
    answer_s: float
    prompt_token_s: float
    attention_s: float
    reading_attention_s: float
    #: Bytes per token of the engine's tokenizer; routing estimates `BYTES_PER_TOKEN`.
    bytes_per_token: float = BYTES_PER_TOKEN
    #: Cores that all workers share: more busy workers slow each other down. None: each worker has its own.
    shared_cores: int | None = None
    capacity: int = 16
    cache_tokens: int = 16_384
    in_flight_tokens: int = 4096
    step_tokens: int = 512


@dataclass
class SimulatedRequest:
    """One request and how far it has come."""

    arrival: Arrival
    route: RoutingDecision
    blocks: Sequence[bytes]
    prompt_tokens: int
    worker: int = -1
    #: Prompt tokens that are not prefilled yet; -1 until the cached prefix has been looked up.
    to_prefill: int = 0
    cached_tokens: int = 0
    decoded: int = 0
    first_token_s: float = 0.0


@dataclass
class Worker:
    """One simulated worker."""

    number: int
    prefill_budget: PrefillBudget = field(default_factory=partial(PrefillBudget, in_tiles=True))
    cache: "OrderedDict[bytes, None]" = field(default_factory=OrderedDict)
    queue: "deque[SimulatedRequest]" = field(default_factory=deque)
    in_flight: list[SimulatedRequest] = field(default_factory=list)
    waiting_tokens: int = 0
    num_jobs: int = 0
    load: int = 0
    recent_tokens: float = 0.0
    recent_at_s: float = 0.0
    stepping: bool = False


@dataclass(frozen=True)
class Outcome:
    """All requests after their end, and each worker's computed tokens."""

    requests: list[SimulatedRequest]
    loads: list[int]

    @property
    def cached_share(self) -> float:
        """Prompt tokens from a cache over all prompt tokens."""
        return sum(request.cached_tokens for request in self.requests) / sum(
            request.prompt_tokens for request in self.requests
        )

    @property
    def first_token_s(self) -> list[float]:
        """Each request's seconds from arrival to first token."""
        return [request.first_token_s - request.arrival.at_s for request in self.requests]

    @property
    def load_max_over_mean(self) -> float:
        """The busiest worker's work over the mean."""
        return max(self.loads) * len(self.loads) / sum(self.loads)


class Simulation:
    """Runs once."""

    def __init__(
        self,
        machine: Machine,
        num_workers: int,
        policy: RoutingPolicy,
        *,
        max_waiting: int,
        block_bytes: int,
        seed: int = 0,
    ) -> None:
        self._machine, self._policy, self._max_waiting, self._block_bytes = machine, policy, max_waiting, block_bytes
        self._rng = random.Random(seed)
        self._now_s = 0.0
        self._workers = [Worker(number) for number in range(num_workers)]
        self._names = [str(number) for number in range(num_workers)]
        self._speeds = [Throughput(lambda: self._now_s) for _ in self._workers]
        #: The prefix index: block to the workers that hold it, each until when. Cached blocks count without end, those
        #: of requests that were only routed there for `ROUTED_S`.
        self._holders: defaultdict[bytes, dict[int, float]] = defaultdict(dict)
        self._shared: deque[SimulatedRequest] = deque()
        self._num_stepping = 0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._num_events = 0
        self._done: list[SimulatedRequest] = []

    def run(self, arrivals: Sequence[Arrival]) -> Outcome:
        """Simulate until every request is answered."""
        for arrival in arrivals:
            self._at(arrival.at_s, partial(self._arrive, arrival))
        for worker in self._workers:
            self._at(self._rng.uniform(0, NEAR_LOOK_S), partial(self._steal, worker))
        while len(self._done) < len(arrivals):
            self._now_s, _, action = heapq.heappop(self._events)
            action()
        return Outcome(self._done, [worker.load for worker in self._workers])

    def _at(self, at_s: float, action: Callable[[], None]) -> None:
        self._num_events += 1
        heapq.heappush(self._events, (at_s, self._num_events, action))

    def _arrive(self, arrival: Arrival) -> None:
        blocks = block_hashes(arrival.messages, model="simulated", namespace="all", block_bytes=self._block_bytes)
        num_bytes = len(canonical_bytes(arrival.messages))
        compared = self._compared(blocks if self._policy is RoutingPolicy.PREFIX else ())
        candidates = [
            Candidate(
                worker=self._names[number],
                capacity=self._machine.capacity,
                speed=self._speeds[number].tokens_per_s,
                waiting_tokens=self._workers[number].waiting_tokens,
                num_jobs=self._workers[number].num_jobs,
                recent_tokens=self._recent(self._workers[number]),
                cached_tokens=num_cached * self._block_bytes // BYTES_PER_TOKEN,
            )
            for number, num_cached in compared.items()
        ]
        demand = Demand.of(num_bytes, arrival.max_tokens)
        route = choose(demand, candidates, self._policy, self._max_waiting, self._rng)
        request = SimulatedRequest(
            arrival, route, blocks, prompt_tokens=round(num_bytes / self._machine.bytes_per_token)
        )
        if route.worker is None:
            self._shared.append(request)
            return
        worker = self._workers[int(route.worker)]
        for block in blocks:
            known_s = self._holders[block].get(worker.number, 0.0)
            self._holders[block][worker.number] = max(known_s, self._now_s + ROUTED_S)
        self._place(worker, request)

    def _compared(self, blocks: Sequence[bytes]) -> dict[int, int]:
        """The workers to compare for these blocks, and how many of the blocks each holds."""
        holders: dict[str, int] = {}
        for index in reversed(range(len(blocks))):
            if len(holders) >= COMPARED_HOLDERS:  # workers that hold less are compared like the others
                break
            known = self._holders.get(blocks[index], {})
            for number in islice(known, 2 * COMPARED_HOLDERS):
                if self._holds(number, blocks[index]):
                    holders.setdefault(str(number), index + 1)
        numbers = map(int, shortlist(self._names, holders, self._rng))
        return {number: sum(1 for _ in takewhile(partial(self._holds, number), blocks)) for number in numbers}

    def _holds(self, number: int, block: bytes) -> bool:
        return self._holders.get(block, {}).get(number, 0.0) > self._now_s

    def _recent(self, worker: Worker) -> float:
        return worker.recent_tokens * math.exp((worker.recent_at_s - self._now_s) / RECENT_S)

    def _place(self, worker: Worker, request: SimulatedRequest) -> None:
        worker.waiting_tokens += request.route.work_tokens
        worker.num_jobs += 1
        worker.recent_tokens, worker.recent_at_s = self._recent(worker) + request.route.work_tokens, self._now_s
        worker.queue.append(request)
        self._take(worker)

    def _take(self, worker: Worker) -> None:
        while worker.queue and len(worker.in_flight) < self._machine.capacity:
            request = worker.queue.popleft()
            request.worker = worker.number
            worker.in_flight.append(request)
            self._speeds[worker.number].begun()
            request.to_prefill = -1  # its cached prefix is looked up when its prefill begins
        if worker.in_flight and not worker.stepping:
            self._step(worker)

    def _step(self, worker: Worker) -> None:
        """Begin a step: one token of every answer, and a chunk of the first prompt that is not prefilled."""
        machine = self._machine
        if not worker.stepping:
            worker.stepping = True
            self._num_stepping += 1
        active = self._with_cells(worker)
        prefilling = next((request for request in active if request.to_prefill), None)
        decoding = [request for request in active if not request.to_prefill]
        chunk = 0
        if prefilling is not None:
            if prefilling.to_prefill < 0:
                self._begin_prefill(worker, prefilling)
            crowded = len(worker.in_flight) >= machine.capacity
            budget = worker.prefill_budget.prompt_tokens(len(decoding), machine.step_tokens, crowded=crowded)
            chunk = min(prefilling.to_prefill, budget)
        seconds = machine.step_s + machine.answer_s * len(decoding) + machine.prompt_token_s * chunk
        seconds += machine.attention_s * sum(request.prompt_tokens + request.decoded for request in decoding)
        if prefilling is not None:
            attention_s = machine.attention_s if decoding else machine.reading_attention_s
            seconds += attention_s * chunk * (prefilling.prompt_tokens - prefilling.to_prefill)
        if machine.shared_cores:
            seconds *= max(1.0, self._num_stepping / machine.shared_cores)
        worker.prefill_budget.learn(len(decoding), chunk, seconds)
        self._at(self._now_s + seconds, lambda: self._finish_step(worker, prefilling, chunk, decoding))

    def _with_cells(self, worker: Worker) -> list[SimulatedRequest]:
        """The requests that have KV cells: as many as fit in order of arrival, and at least one."""
        ends = accumulate(request.prompt_tokens + request.arrival.max_tokens for request in worker.in_flight)
        num = sum(1 for _ in takewhile(lambda end: end <= self._machine.in_flight_tokens, ends))
        return worker.in_flight[: max(num, 1)]

    def _begin_prefill(self, worker: Worker, request: SimulatedRequest) -> None:
        num_blocks = sum(1 for _ in takewhile(worker.cache.__contains__, request.blocks))
        share = num_blocks * self._block_bytes / len(canonical_bytes(request.arrival.messages))
        request.cached_tokens = min(int(share * request.prompt_tokens), request.prompt_tokens - 1)
        request.to_prefill = request.prompt_tokens - request.cached_tokens

    def _finish_step(
        self, worker: Worker, prefilling: SimulatedRequest | None, chunk: int, decoding: Sequence[SimulatedRequest]
    ) -> None:
        if prefilling is not None:
            prefilling.to_prefill -= chunk
            if not prefilling.to_prefill:
                self._keep(worker, prefilling)
                self._decode(worker, prefilling)
                prefilling.first_token_s = self._now_s
        for request in decoding:
            self._decode(worker, request)
        if worker.in_flight:
            self._step(worker)
        else:
            worker.stepping = False
            self._num_stepping -= 1
        self._take(worker)

    def _keep(self, worker: Worker, request: SimulatedRequest) -> None:
        # The last block is touched first, so that it is evicted before the blocks that it continues.
        for block in reversed(request.blocks):
            worker.cache[block] = None
            worker.cache.move_to_end(block)
        evicted = []
        while len(worker.cache) * self._block_bytes > self._machine.cache_tokens * self._machine.bytes_per_token:
            evicted.append(worker.cache.popitem(last=False)[0])
        self._at(self._now_s + TICK_S / 2, lambda: self._publish(worker.number, request.blocks, evicted))

    def _publish(self, number: int, held: Sequence[bytes], evicted: Sequence[bytes]) -> None:
        for block in held:
            self._holders[block][number] = math.inf
        for block in evicted:
            self._holders[block].pop(number, None)

    def _decode(self, worker: Worker, request: SimulatedRequest) -> None:
        request.decoded += 1
        if request.decoded < request.arrival.max_tokens:
            return
        worker.in_flight.remove(request)
        worker.waiting_tokens -= request.route.work_tokens
        worker.num_jobs -= 1
        worker.load += request.prompt_tokens - request.cached_tokens + request.decoded
        self._speeds[worker.number].ended(request.route.work_tokens)
        self._done.append(request)

    def _steal(self, worker: Worker) -> None:
        """As the script TAKE: the shared line first, else half of the difference from the longest of some others."""
        room = self._machine.capacity - worker.num_jobs
        while room > 0 and self._shared:
            self._place(worker, self._shared.popleft())
            room -= 1
        others = [self._workers[self._rng.randrange(len(self._workers))] for _ in range(COMPARED_LINES)]
        victim = max(others, key=lambda other: len(other.queue))
        num = min(room, len(victim.queue), (victim.num_jobs - worker.num_jobs) // 2)
        for request in [victim.queue.pop() for _ in range(num)]:
            victim.waiting_tokens -= request.route.work_tokens
            victim.num_jobs -= 1
            self._place(worker, request)
        self._at(self._now_s + NEAR_LOOK_S, lambda: self._steal(worker))


def quantile(values: Sequence[float], share: float) -> float:
    """The value that this share of them does not exceed."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]
