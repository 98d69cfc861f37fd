"""Which worker a request goes to. Pure: what is known of the workers in, a worker and a reason out.

The cost of a worker is the work that waits there plus the prompt's tokens that it has not cached, over its measured
speed. The lowest wins, so a cached prefix attracts by what it saves, and a busy worker repels by what it delays.
What a worker was sent of late above the mean counts as well (as in Preble, Srivatsa et al., ICLR 2025): while nothing
waits anywhere, whoever holds the system prompt that all share would otherwise get everything.
A worker with too many jobs is passed over.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from schemas.routing_decision import RoutingDecision, RoutingPolicy, RoutingReason

#: Bytes of a prompt that count as a token; a gateway has no tokenizer, and only ratios of costs decide.
BYTES_PER_TOKEN = 4
#: Tokens of prompt that one written token costs about as much time as, in a batch.
WRITING_COST = 4
#: Tokens that an answer is taken to have, unless it may not have so many.
TYPICAL_ANSWER_TOKENS = 64
#: Tokens of work a second that a worker is taken to do before anything was measured.
UNMEASURED_SPEED = 500.0
#: How often a prompt token that is not cached counts: the request itself waits until it is read, and so do those that
#: come after it. With 1, a burst of one prefix spreads and every worker reads it (docs/log.md has the figures).
READING_COST = 4
#: Speeds within this factor of the mean are taken to be the mean: what a worker was asked lately (long prompts or long
#: answers, few at once or many) moves its measured speed as much, and whoever is asked more would look faster.
ALIKE = 2.0
#: Workers that are compared for one request, at most, and of those the ones that hold most of its prompt. The others
#: are drawn by lot: the best of a few dozen is nearly as good as the best of thousands (the power of choices,
#: Mitzenmacher, 2001), and no request costs more for there being more workers.
COMPARED, COMPARED_HOLDERS = 48, 16
#: Costs this close to the lowest, as a share of the time to read the whole prompt there, tie with it: work is
#: estimated, and the same one must not always win by a hair.
TIE_SHARE = 0.1


@dataclass(frozen=True)
class WorkerLoad:
    """What was sent to a worker and is not done."""

    tokens: int = 0
    num_jobs: int = 0
    #: Tokens of work that were sent there at any time, faded since (scripts.RECENT_S).
    recent_tokens: float = 0.0
    #: Whether it counts as alive.
    alive: bool = False


@dataclass(frozen=True)
class Candidate:
    """A live worker as routing sees it."""

    worker: str
    #: Jobs that it works on at once.
    capacity: int
    #: Tokens of work a second; None: not measured yet.
    speed: float | None = None
    #: Tokens of work that were sent there and are not done.
    waiting_tokens: float = 0.0
    #: Jobs that were sent there and are not done.
    num_jobs: int = 0
    #: Tokens of work that were sent there of late, fading.
    recent_tokens: float = 0.0
    #: Tokens of the prompt that it holds.
    cached_tokens: int = 0


@dataclass(frozen=True)
class Demand:
    """What a request asks of a worker, in tokens."""

    prompt_tokens: int
    writing_tokens: int

    @classmethod
    def of(cls, num_bytes: int, max_tokens: int) -> "Demand":
        """The demand of a prompt of so many bytes whose answer may have so many tokens."""
        writing = WRITING_COST * min(max_tokens, TYPICAL_ANSWER_TOKENS)
        return cls(prompt_tokens=-(-num_bytes // BYTES_PER_TOKEN), writing_tokens=writing)


def shortlist(workers: Sequence[str], held: Mapping[str, int], lots: random.Random) -> list[str]:
    """The workers to compare for a request. `held`: how many blocks some of them lease."""
    if len(workers) <= COMPARED:
        return list(workers)
    in_any_order = lots.sample(list(held), len(held))  # of equals, not always the same
    holders = sorted(in_any_order, key=lambda worker: -held[worker])[:COMPARED_HOLDERS]
    drawn = lots.sample(workers, COMPARED - len(holders))
    return list(dict.fromkeys([*holders, *drawn]))


def choose(
    demand: Demand,
    candidates: Sequence[Candidate],
    policy: RoutingPolicy,
    max_waiting: int,
    lots: random.Random,
) -> RoutingDecision:
    """The route of a request; ties are broken by lot.

    `max_waiting`: a worker with so many jobs beyond its capacity is passed over.
    """
    open_ones = [candidate for candidate in candidates if candidate.num_jobs < candidate.capacity + max_waiting]
    most_cached = max((candidate.cached_tokens for candidate in candidates), default=0)
    if not open_ones:
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
        chosen, reason = lots.choice(open_ones), RoutingReason.RANDOM
    else:
        costs = [cost_s(candidate) for candidate in open_ones]
        lowest = min(costs)
        near = [
            candidate
            for candidate, cost in zip(open_ones, costs, strict=True)
            if cost <= lowest + TIE_SHARE * demand.prompt_tokens / _speed(candidate, usual_speed)
        ]
        chosen = lots.choice(near)
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
        num_candidates=len(open_ones),
        num_passed_over=len(candidates) - len(open_ones),
    )


def _speed(candidate: Candidate, usual_speed: float) -> float:
    if candidate.speed and not 1 / ALIKE < candidate.speed / usual_speed < ALIKE:
        return candidate.speed
    return usual_speed


def _usual_speed(candidates: Sequence[Candidate]) -> float:
    """The mean of what was measured: a worker that has just started is taken to be like the others."""
    measured = [candidate.speed for candidate in candidates if candidate.speed]
    return sum(measured) / len(measured) if measured else UNMEASURED_SPEED
