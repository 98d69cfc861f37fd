"""Many workers and their traffic without engines: the real routing code on simulated workers and a simulated clock.

A worker steps as the edge engine does: each step decodes one token of every answer and reads a piece of one prompt;
its time is a line in both. Its cache holds blocks, the least recently used go first. What the index knows comes a
publishing tick late; what was just routed counts at once. Everything that decides is the gateway's and the workers'
own.
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
    Neighbour,
    choose,
    shortlist,
    worth_taking,
)
from broker.run_queues import RECENT_S, SURVEYED
from experiments.routing_workload import Ask
from schemas.routing_decision import RoutingDecision, RoutingPolicy
from workers.edge.prefill_budget import PrefillBudget
from workers.runtime.prefix_publisher import TICK_S
from workers.runtime.throughput import Throughput
from workers.runtime.work_stealing import LOOK_S


@dataclass(frozen=True)
class Machine:
    """What the workers run on. A step takes `step_s`, and so much more for each answer and each prompt token in it.

    Either takes `attention_s` more for each token that is before it in its conversation; a prompt token in a step that
    only reads takes `reading_attention_s`, as llama.cpp then computes many at once.
    """

    step_s: float
    answer_s: float
    prompt_token_s: float
    attention_s: float
    reading_attention_s: float
    #: Bytes of a prompt that the engine's tokenizer makes a token of; routing takes it to be `BYTES_PER_TOKEN`.
    bytes_per_token: float = BYTES_PER_TOKEN
    #: Workers that share these cores slow each other down when more of them are busy; None: each has its own.
    shared_cores: int | None = None
    capacity: int = 16
    cache_tokens: int = 16_384
    in_flight_tokens: int = 4096
    step_tokens: int = 512


@dataclass
class RunningRequest:
    """One request on its way."""

    ask: Ask
    route: RoutingDecision
    blocks: Sequence[bytes]
    prompt_tokens: int
    worker: int = -1
    unread: int = 0
    cached_tokens: int = 0
    written: int = 0
    first_token_s: float = 0.0


@dataclass
class Worker:
    """One simulated worker."""

    number: int
    pacing: PrefillBudget = field(default_factory=partial(PrefillBudget, in_tiles=True))
    cache: "OrderedDict[bytes, None]" = field(default_factory=OrderedDict)
    queue: "deque[RunningRequest]" = field(default_factory=deque)
    flights: list[RunningRequest] = field(default_factory=list)
    waiting_tokens: int = 0
    num_jobs: int = 0
    load: int = 0
    recent_tokens: float = 0.0
    recent_at_s: float = 0.0
    stepping: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of the traffic."""

    flights: list[RunningRequest]
    loads: list[int]

    @property
    def cached_share(self) -> float:
        """Prompt tokens from a cache over all prompt tokens."""
        return sum(f.cached_tokens for f in self.flights) / sum(f.prompt_tokens for f in self.flights)

    @property
    def first_token_s(self) -> list[float]:
        """Of each request, from its coming to its first token."""
        return [flight.first_token_s - flight.ask.at_s for flight in self.flights]

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
        self._lots = random.Random(seed)
        self._now_s = 0.0
        self._workers = [Worker(number) for number in range(num_workers)]
        self._names = [str(number) for number in range(num_workers)]
        self._speeds = [Throughput(lambda: self._now_s) for _ in self._workers]
        #: What the index knows: block to the workers that hold it, and until when; for ever, or a while if it was
        #: only routed there.
        self._holders: defaultdict[bytes, dict[int, float]] = defaultdict(dict)
        self._shared: deque[RunningRequest] = deque()
        self._num_stepping = 0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._num_events = 0
        self._done: list[RunningRequest] = []

    def run(self, asks: Sequence[Ask]) -> Outcome:
        """Play the traffic until everything is answered."""
        for ask in asks:
            self._at(ask.at_s, partial(self._arrive, ask))
        for worker in self._workers:
            self._at(self._lots.uniform(0, LOOK_S), partial(self._forage, worker))
        while len(self._done) < len(asks):
            self._now_s, _, action = heapq.heappop(self._events)
            action()
        return Outcome(self._done, [worker.load for worker in self._workers])

    def _at(self, at_s: float, action: Callable[[], None]) -> None:
        self._num_events += 1
        heapq.heappush(self._events, (at_s, self._num_events, action))

    def _arrive(self, ask: Ask) -> None:
        blocks = block_hashes(ask.messages, model="simulated", namespace="all", block_bytes=self._block_bytes)
        num_bytes = len(canonical_bytes(ask.messages))
        compared = self._compared(blocks if self._policy is RoutingPolicy.PREFIX else ())
        candidates = [
            Candidate(
                worker=self._names[number],
                capacity=self._machine.capacity,
                speed=self._speeds[number].tokens_per_s,
                waiting_tokens=self._workers[number].waiting_tokens,
                num_jobs=self._workers[number].num_jobs,
                recent_tokens=self._recent(self._workers[number]),
                cached_tokens=num_held * self._block_bytes // BYTES_PER_TOKEN,
            )
            for number, num_held in compared.items()
        ]
        demand = Demand.of(num_bytes, ask.max_tokens)
        route = choose(demand, candidates, self._policy, self._max_waiting, self._lots)
        flight = RunningRequest(ask, route, blocks, prompt_tokens=round(num_bytes / self._machine.bytes_per_token))
        if route.worker is None:
            self._shared.append(flight)
            return
        worker = self._workers[int(route.worker)]
        for block in blocks:
            known_s = self._holders[block].get(worker.number, 0.0)
            self._holders[block][worker.number] = max(known_s, self._now_s + ROUTED_S)
        self._place(worker, flight)

    def _compared(self, blocks: Sequence[bytes]) -> dict[int, int]:
        """The workers to compare for these blocks, and how many of them each holds."""
        holders: dict[str, int] = {}
        for place in reversed(range(len(blocks))):
            if len(holders) >= COMPARED_HOLDERS:  # those that hold less are not told apart from the others
                break
            here = self._holders.get(blocks[place], {})
            for number in islice(here, 2 * COMPARED_HOLDERS):
                if self._holds(number, blocks[place]):
                    holders.setdefault(str(number), place + 1)
        numbers = map(int, shortlist(self._names, holders, self._lots))
        return {number: sum(1 for _ in takewhile(partial(self._holds, number), blocks)) for number in numbers}

    def _holds(self, number: int, block: bytes) -> bool:
        return self._holders.get(block, {}).get(number, 0.0) > self._now_s

    def _recent(self, worker: Worker) -> float:
        return worker.recent_tokens * math.exp((worker.recent_at_s - self._now_s) / RECENT_S)

    def _place(self, worker: Worker, flight: RunningRequest) -> None:
        worker.waiting_tokens += flight.route.work_tokens
        worker.num_jobs += 1
        worker.recent_tokens, worker.recent_at_s = self._recent(worker) + flight.route.work_tokens, self._now_s
        worker.queue.append(flight)
        self._take(worker)

    def _take(self, worker: Worker) -> None:
        while worker.queue and len(worker.flights) < self._machine.capacity:
            flight = worker.queue.popleft()
            flight.worker = worker.number
            worker.flights.append(flight)
            self._speeds[worker.number].begun()
            flight.unread = -1  # what is cached is looked up when its prompt's turn has come
        if worker.flights and not worker.stepping:
            self._step(worker)

    def _step(self, worker: Worker) -> None:
        """Begin a step: one token of every answer, and a piece of the first prompt that is not read."""
        machine = self._machine
        if not worker.stepping:
            worker.stepping = True
            self._num_stepping += 1
        active = self._with_cells(worker)
        reading = next((flight for flight in active if flight.unread), None)
        writing = [flight for flight in active if not flight.unread]
        piece = 0
        if reading is not None:
            if reading.unread < 0:
                self._begin_reading(worker, reading)
            crowded = len(worker.flights) >= machine.capacity
            most = worker.pacing.prompt_tokens(len(writing), machine.step_tokens, crowded=crowded)
            piece = min(reading.unread, most)
        took_s = machine.step_s + machine.answer_s * len(writing) + machine.prompt_token_s * piece
        took_s += machine.attention_s * sum(flight.prompt_tokens + flight.written for flight in writing)
        if reading is not None:
            attention_s = machine.attention_s if writing else machine.reading_attention_s
            took_s += attention_s * piece * (reading.prompt_tokens - reading.unread)
        if machine.shared_cores:
            took_s *= max(1.0, self._num_stepping / machine.shared_cores)
        worker.pacing.learn(len(writing), piece, took_s)
        self._at(self._now_s + took_s, lambda: self._finish_step(worker, reading, piece, writing))

    def _with_cells(self, worker: Worker) -> list[RunningRequest]:
        """Those that have cells: in the order of arrival, as many as there are cells for, but one at least."""
        ends = accumulate(flight.prompt_tokens + flight.ask.max_tokens for flight in worker.flights)
        num = sum(1 for _ in takewhile(lambda end: end <= self._machine.in_flight_tokens, ends))
        return worker.flights[: max(num, 1)]

    def _begin_reading(self, worker: Worker, flight: RunningRequest) -> None:
        num_held = next((n for n, block in enumerate(flight.blocks) if block not in worker.cache), len(flight.blocks))
        share = num_held * self._block_bytes / len(canonical_bytes(flight.ask.messages))
        flight.cached_tokens = min(int(share * flight.prompt_tokens), flight.prompt_tokens - 1)
        flight.unread = flight.prompt_tokens - flight.cached_tokens

    def _finish_step(
        self, worker: Worker, reading: RunningRequest | None, piece: int, writing: Sequence[RunningRequest]
    ) -> None:
        if reading is not None:
            reading.unread -= piece
            if not reading.unread:
                self._keep(worker, reading)
                self._write(worker, reading)
                reading.first_token_s = self._now_s
        for flight in writing:
            self._write(worker, flight)
        if worker.flights:
            self._step(worker)
        else:
            worker.stepping = False
            self._num_stepping -= 1
        self._take(worker)

    def _keep(self, worker: Worker, flight: RunningRequest) -> None:
        # The last block is touched first, so that it goes before those that it follows.
        for block in reversed(flight.blocks):
            worker.cache[block] = None
            worker.cache.move_to_end(block)
        evicted = []
        while len(worker.cache) * self._block_bytes > self._machine.cache_tokens * self._machine.bytes_per_token:
            evicted.append(worker.cache.popitem(last=False)[0])
        self._at(self._now_s + TICK_S / 2, lambda: self._publish(worker.number, flight.blocks, evicted))

    def _publish(self, number: int, held: Sequence[bytes], evicted: Sequence[bytes]) -> None:
        for block in held:
            self._holders[block][number] = math.inf
        for block in evicted:
            self._holders[block].pop(number, None)

    def _write(self, worker: Worker, flight: RunningRequest) -> None:
        flight.written += 1
        if flight.written < flight.ask.max_tokens:
            return
        worker.flights.remove(flight)
        worker.waiting_tokens -= flight.route.work_tokens
        worker.num_jobs -= 1
        worker.load += flight.prompt_tokens - flight.cached_tokens + flight.written
        self._speeds[worker.number].ended(flight.route.work_tokens)
        self._done.append(flight)

    def _forage(self, worker: Worker) -> None:
        """What `workers.runtime.work_stealing` does: from the shared queue, else from a longer one."""
        room = self._machine.capacity - worker.num_jobs
        while room > 0 and self._shared:
            self._place(worker, self._shared.popleft())
            room -= 1
        others = [self._workers[self._lots.randrange(len(self._workers))] for _ in range(SURVEYED)]
        neighbours = [
            Neighbour(str(other.number), len(other.queue), other.num_jobs, alive=True)
            for other in others
            if other is not worker
        ]
        if taken := worth_taking(neighbours, room=room, num_own=worker.num_jobs):
            neighbour, num = taken
            victim = self._workers[int(neighbour.queue)]
            for flight in [victim.queue.pop() for _ in range(num)]:
                victim.waiting_tokens -= flight.route.work_tokens
                victim.num_jobs -= 1
                self._place(worker, flight)
        self._at(self._now_s + LOOK_S, lambda: self._forage(worker))


def quantile(values: Sequence[float], share: float) -> float:
    """The value that this share of them does not exceed."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]
