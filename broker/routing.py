"""Which worker a request goes to. Pure: from the workers' state to a worker and a reason.

A worker's cost is its unfinished work plus the prompt's tokens that it has not cached, divided by its measured speed.
The worker with the lowest cost is chosen, so that a cached prefix weighs as much as it saves, and a busy worker's queue
as much as it delays. Work recently sent to a worker counts too, relative to the mean (as in Preble, Srivatsa et al.,
ICLR 2025): otherwise, while no worker has a queue, the one that holds a system prompt shared by all requests would get
all of them. A worker with too many jobs is passed over.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from schemas.routing_decision import RoutingDecision, RoutingPolicy, RoutingReason

#: Bytes of a prompt that count as a token. A gateway has no tokenizer, and only the ratios of costs matter.
BYTES_PER_TOKEN = 4
#: The time to generate a token, in a batch, over the time to prefill one.
WRITING_COST = 4
#: Expected tokens of an answer, unless the request's limit is lower.
TYPICAL_ANSWER_TOKENS = 64
#: Assumed tokens of work per second of a worker before any worker's speed was measured.
UNMEASURED_SPEED = 500.0
#: Weight of a prompt token that is not cached: its prefill delays the request itself and those behind it. With 1, a
#: burst with the same prefix spreads, and every worker prefills the prefix (docs/log.md has the figures).
READING_COST = 4
#: Speeds within this factor of the mean count as the mean. The mix of recent requests (long prompts or long answers,
#: few at once or many) changes a measured speed by as much, and a worker that gets more requests would look faster.
ALIKE = 2.0
#: The most workers that are compared for one request, and how many of those are chosen because they hold most of its
#: prompt. The others are drawn at random: the best of a few dozen is nearly as good as the best of thousands (the power
#: of choices, Mitzenmacher, 2001), and the cost of a decision does not grow with the number of workers.
COMPARED, COMPARED_HOLDERS = 48, 16
#: Costs that exceed the lowest by less than this share of the time to prefill the whole prompt count as equal: costs
#: are estimates, and a negligible difference must not always favour the same worker.
TIE_SHARE = 0.1


@dataclass(frozen=True)
class WorkerLoad:
    """A worker's unfinished requests."""

    #: Their tokens of work.
    tokens: int = 0
    num_jobs: int = 0
    #: Tokens of work sent to the worker, finished or not, with exponential decay (scripts.RECENT_S).
    recent_tokens: float = 0.0
    #: Whether the worker counts as alive.
    alive: bool = False


@dataclass(frozen=True)
class Candidate:
    """A live worker as routing sees it."""

    worker: str
    #: The most jobs that it works on at the same time.
    capacity: int
    #: Tokens of work per second; None if not measured yet.
    speed: float | None = None
    #: Tokens of work of its unfinished jobs.
    waiting_tokens: float = 0.0
    #: Its unfinished jobs.
    num_jobs: int = 0
    #: See `WorkerLoad.recent_tokens`.
    recent_tokens: float = 0.0
    #: The prompt's tokens that are in its KV cache.
    cached_tokens: int = 0


@dataclass(frozen=True)
class Demand:
    """The estimated work of a request."""

    prompt_tokens: int
    #: The work of generating the answer, in prompt tokens that take as long.
    writing_tokens: int

    @classmethod
    def of(cls, num_bytes: int, max_tokens: int) -> "Demand":
        """The demand of a prompt of `num_bytes` bytes whose answer may have up to `max_tokens` tokens."""
        writing = WRITING_COST * min(max_tokens, TYPICAL_ANSWER_TOKENS)
        return cls(prompt_tokens=-(-num_bytes // BYTES_PER_TOKEN), writing_tokens=writing)


def shortlist(workers: Sequence[str], held: Mapping[str, int], rng: random.Random) -> list[str]:
    """The workers to compare for a request. `held`: how many of its blocks a worker has cached, if any."""
    if len(workers) <= COMPARED:
        return list(workers)
    shuffled = rng.sample(list(held), len(held))  # so that equal holders are chosen at random
    holders = sorted(shuffled, key=lambda worker: -held[worker])[:COMPARED_HOLDERS]
    drawn = rng.sample(workers, COMPARED - len(holders))
    return list(dict.fromkeys([*holders, *drawn]))


def choose(
    demand: Demand,
    candidates: Sequence[Candidate],
    policy: RoutingPolicy,
    max_waiting: int,
    rng: random.Random,
) -> RoutingDecision:
    """Choose a worker for a request; ties are broken at random.

    `max_waiting`: a worker with this many jobs beyond its capacity is passed over.
    """
    available = [candidate for candidate in candidates if candidate.num_jobs < candidate.capacity + max_waiting]
    most_cached = max((candidate.cached_tokens for candidate in candidates), default=0)
    if not available:
        return RoutingDecision(
            worker=None,
            reason=RoutingReason.ALL_FULL if candidates else RoutingReason.NO_WORKER,
            prompt_tokens=demand.prompt_tokens,
            work_tokens=demand.prompt_tokens + demand.writing_tokens,
            most_cached_tokens=most_cached,
            num_passed_over=len(candidates),
        )
    usual_speed = _usual_speed(candidates)
    usual_recent = sum(candidate.recent_tokens for candidate in candidates) / len(candidates)

    def cost_s(candidate: Candidate) -> float:
        cached = min(candidate.cached_tokens, demand.prompt_tokens) if counts_cache else 0
        tokens = READING_COST * (demand.prompt_tokens - cached) + max(candidate.waiting_tokens, 0.0)
        return (tokens + candidate.recent_tokens - usual_recent) / _speed(candidate, usual_speed)

    counts_cache = policy is RoutingPolicy.PREFIX
    if policy is RoutingPolicy.RANDOM:
        chosen, reason = rng.choice(available), RoutingReason.RANDOM
    else:
        costs = [cost_s(candidate) for candidate in available]
        lowest = min(costs)
        tied = [
            candidate
            for candidate, cost in zip(available, costs, strict=True)
            if cost <= lowest + TIE_SHARE * demand.prompt_tokens / _speed(candidate, usual_speed)
        ]
        chosen = rng.choice(tied)
        reason = RoutingReason.PREFIX if counts_cache and chosen.cached_tokens else RoutingReason.LEAST_LOADED
    cached = min(chosen.cached_tokens, demand.prompt_tokens)
    return RoutingDecision(
        worker=chosen.worker,
        reason=reason,
        prompt_tokens=demand.prompt_tokens,
        work_tokens=demand.prompt_tokens - cached + demand.writing_tokens,
        cached_tokens=cached,
        most_cached_tokens=most_cached,
        cost_s=cost_s(chosen),
        num_candidates=len(available),
        num_passed_over=len(candidates) - len(available),
    )


def _speed(candidate: Candidate, usual_speed: float) -> float:
    if candidate.speed and not 1 / ALIKE < candidate.speed / usual_speed < ALIKE:
        return candidate.speed
    return usual_speed


def _usual_speed(candidates: Sequence[Candidate]) -> float:
    """The mean of the measured speeds, which a worker without one is assumed to have."""
    measured = [candidate.speed for candidate in candidates if candidate.speed]
    return sum(measured) / len(measured) if measured else UNMEASURED_SPEED
