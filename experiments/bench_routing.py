"""Routing with real edge workers, in the prefix index, and simulated for a thousand workers.

    python -m experiments.bench_routing [--requests N] [--without-engines] [--without-thousand]
                                                                                    (or make bench-routing)

Three edge workers with one thread each answer the same conversations under each policy in turn, at a low rate and at
one above their capacity under `random`, which is measured first. The simulator is given the costs of the engine's
steps on this machine, and predicts the same figures.
Caveats: three workers share this machine's cores, so times to first token count relative to each other. Answers are
short (16 tokens), since routing is about the prompts.
"""

import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, cast

from broker import keys
from broker.connection import connect
from broker.prefix_blocks import canonical_bytes
from broker.prefix_index import PrefixIndex
from broker.routing import WRITING_COST
from config.settings import read_settings
from experiments.harness.edge import start_edge, submit, user_message
from experiments.harness.report import parser, print_document, print_table
from experiments.routing_cluster import Answered, Cluster, cluster
from experiments.routing_simulator import Machine, Simulation, quantile
from experiments.routing_workload import Arrival, best_shares, conversations, traffic
from experiments.waiting import outcome_of
from firstdraft.local.embedded import embedded_server
from schemas.drafts import Draft
from schemas.requests import Message
from schemas.routing_decision import RoutingPolicy

NUM_WORKERS = 3
#: The rates, as shares of the workers' capacity under `random`.
RATES = {"low": 0.4, "high": 1.15}
#: Requests that arrive at once to measure the capacity. Prompts grow with the turns of a conversation, and fewer
#: requests would all be first turns.
AT_ONCE = 80
#: Tokens that are decoded to measure a step, and how often.
WRITTEN, ROUNDS = 32, 3
#: The machine that is simulated if no engine is measured.
ASSUMED = Machine(
    step_s=0.001, answer_s=0.008, prompt_token_s=0.0022, attention_s=7e-6, reading_attention_s=1.7e-6, shared_cores=2
)
#: Simulated workers, and requests for each.
THOUSAND, REQUESTS_EACH = 1000, 40
#: Requests that are sent after a worker's death.
AFTER_DEATH = 30
#: Entries of the index, blocks of the prompt that is looked up, members of each block, and look-ups.
ENTRIES, PROMPT_BLOCKS, MEMBERS, LOOK_UPS = 1_000_000, 256, 4, 2000
#: Entries written in one pipeline.
BATCH = 20_000


@dataclass(frozen=True)
class Figures:
    """The figures of one policy at one rate, measured or simulated."""

    cache_share: float
    ttft_p50_s: float
    ttft_p90_s: float
    load_max_over_mean: float


def main(num_requests: int, *, with_engines: bool, with_thousand: bool) -> None:
    """Run everything, print tables and one JSON document."""
    figures: dict[str, float] = {"lookup_vs_ping": look_up_against_ping()}
    talks = conversations()
    machine = _measure_steps(talks) if with_engines else ASSUMED
    at_once = traffic(talks, rate=1000.0, num_requests=AT_ONCE, num_workers=NUM_WORKERS)
    capacity = _measured_capacity(at_once) if with_engines else _simulated_capacity(machine, at_once)
    for name, share in RATES.items():
        arrivals = traffic(talks, rate=share * capacity, num_requests=num_requests, num_workers=NUM_WORKERS)
        simulated = {policy: _simulated(machine, NUM_WORKERS, policy, arrivals) for policy in RoutingPolicy}
        _print(f"three workers, {share * capacity:.2f} requests/s, simulated", simulated)
        figures |= _comparison(simulated, name, "sim_")
        if with_engines:
            measured = {policy: _measured(policy, arrivals, figures) for policy in RoutingPolicy}
            _print(f"three workers, {share * capacity:.2f} requests/s, measured", measured)
            figures |= _comparison(measured, name, "")
            for policy in RoutingPolicy:
                ratio = simulated[policy].ttft_p90_s / measured[policy].ttft_p90_s
                figures[f"sim_over_measured_ttft_p90_{policy}_{name}"] = ratio
    host = replace(machine, shared_cores=None)  # each of a thousand workers has a host to itself
    capacity_each = _simulated_capacity(host, at_once) / NUM_WORKERS
    for name, share in RATES.items() if with_thousand else ():
        rate = share * capacity_each * THOUSAND
        arrivals = traffic(talks, rate=rate, num_requests=THOUSAND * REQUESTS_EACH, num_workers=THOUSAND)
        simulated = {policy: _simulated(host, THOUSAND, policy, arrivals) for policy in RoutingPolicy}
        _print(f"{THOUSAND} workers, {rate:.0f} requests/s, simulated", simulated)
        figures |= _comparison(simulated, name, "sim1000_")
    for prefix in ("", "sim_", "sim1000_"):
        if f"{prefix}cache_share_low" in figures:
            figures[f"{prefix}cache_share"] = min(figures[f"{prefix}cache_share_{name}"] for name in RATES)
            loads = [figures[f"{prefix}load_max_over_mean_{name}"] for name in RATES]
            figures[f"{prefix}load_max_over_mean"] = max(loads)
    print_document("routing", figures, requests=num_requests, steps=asdict(machine))


def look_up_against_ping() -> float:
    """The p99 of looking up a long prompt in a full index, over the p99 of a PING."""
    with tempfile.TemporaryDirectory() as folder, embedded_server(Path(folder)) as url:
        redis = connect(url)
        index = PrefixIndex(redis, 3600)
        names = [f"edge-host-{member}@0123456789abcdef" for member in range(MEMBERS)]
        blocks = [number.to_bytes(8, "big") for number in range(ENTRIES // MEMBERS)]
        for start in range(0, len(blocks), BATCH // MEMBERS):
            with redis.pipeline(transaction=False) as pipeline:
                for index_of_block, block in enumerate(blocks[start : start + BATCH // MEMBERS], start):
                    # Each member holds another share of the prompt, which is the worst case of a look-up.
                    is_prompt = index_of_block < PROMPT_BLOCKS
                    members = MEMBERS - index_of_block * MEMBERS // PROMPT_BLOCKS if is_prompt else MEMBERS
                    holders = dict.fromkeys(names[:members], "")
                    pipeline.hset(keys.prefix_block(block.hex()), mapping=cast("Any", holders))
                pipeline.execute()
        prompt = blocks[:PROMPT_BLOCKS]
        pings, look_ups = [], []
        for _ in range(LOOK_UPS):
            began = time.perf_counter()
            redis.ping()
            pinged = time.perf_counter()
            index.look_up(prompt)
            pings.append(pinged - began)
            look_ups.append(time.perf_counter() - pinged)
        redis.close()
    return quantile(look_ups, 0.99) / quantile(pings, 0.99)


def _measure_steps(talks: Sequence[tuple[Message, ...]]) -> Machine:
    """The costs of an edge engine's steps with one thread on this machine, while nothing else runs."""
    engine = start_edge(model={"threads": 1})

    def answer(messages: tuple[Message, ...], *, num: int, max_tokens: int) -> tuple[float, list[Draft]]:
        """Seconds until `num` requests with these messages are answered, and their drafts."""
        began = time.perf_counter()
        futures = [submit(engine, messages, max_tokens, use_cache=False) for _ in range(num)]
        drafts = [outcome_of(future, "a draft is written") for future in futures]
        return time.perf_counter() - began, drafts

    def cost(messages: tuple[Message, ...], *, num: int = 1) -> tuple[float, float, int]:
        """Seconds to prefill `num` such requests, seconds of a decoding step for them, and tokens of their prompt."""
        reading, writing = [], []
        for _ in range(ROUNDS):
            reading_s, _ = answer(messages, num=num, max_tokens=1)
            whole_s, drafts = answer(messages, num=num, max_tokens=1 + WRITTEN)
            num_steps = max(max(len(draft.token_ids) for draft in drafts) - 1, 1)
            reading.append(reading_s)
            writing.append(max((whole_s - reading_s) / num_steps, 0.0))
        return median(reading), median(writing), drafts[0].prompt_tokens

    story = user_message("Tell a long story about the sea.")
    longest = max(talks, key=lambda talk: len(canonical_bytes(talk)))
    answer(longest, num=1, max_tokens=4)  # the first steps of a process are slow
    short_s, alone_s, short_tokens = cost(story)
    _, many_s, _ = cost(story, num=8)
    long_s, behind_s, long_tokens = cost(longest)
    engine.close()
    answer_s = max((many_s - alone_s) / 7, 0.0)
    prompt_token_s = short_s / short_tokens
    return Machine(
        step_s=max(alone_s - answer_s, 0.0),
        answer_s=answer_s,
        prompt_token_s=prompt_token_s,
        attention_s=max(behind_s - alone_s, 0.0) / long_tokens,
        # On average a prompt's token has half of the prompt before it.
        reading_attention_s=max(long_s / long_tokens - prompt_token_s, 0.0) * 2 / long_tokens,
        bytes_per_token=len(canonical_bytes(longest)) / long_tokens,
        shared_cores=os.cpu_count(),
    )


def _measured_capacity(at_once: Sequence[Arrival]) -> float:
    """Requests per second that three workers answer under `random`."""
    with cluster(NUM_WORKERS, RoutingPolicy.RANDOM) as running:
        _warm_up(running)
        began = time.perf_counter()
        running.play(at_once)
        return len(at_once) / (time.perf_counter() - began)


def _simulated_capacity(machine: Machine, at_once: Sequence[Arrival]) -> float:
    outcome = _simulation(machine, NUM_WORKERS, RoutingPolicy.RANDOM).run(at_once)
    return len(at_once) / max(request.first_token_s for request in outcome.requests)


def _simulation(machine: Machine, num_workers: int, policy: RoutingPolicy) -> Simulation:
    settings = read_settings()
    return Simulation(
        machine,
        num_workers,
        policy,
        max_waiting=settings.routing.max_waiting,
        block_bytes=settings.prefix_index.block_bytes,
    )


def _simulated(machine: Machine, num_workers: int, policy: RoutingPolicy, arrivals: Sequence[Arrival]) -> Figures:
    outcome = _simulation(machine, num_workers, policy).run(arrivals)
    sizes = [len(canonical_bytes(arrival.messages)) for arrival in arrivals]
    best = sum(share * size for share, size in zip(best_shares(arrivals), sizes, strict=True)) / sum(sizes)
    return Figures(
        cache_share=outcome.cached_share / best,
        ttft_p50_s=quantile(outcome.first_token_s, 0.5),
        ttft_p90_s=quantile(outcome.first_token_s, 0.9),
        load_max_over_mean=outcome.load_max_over_mean,
    )


def _measured(policy: RoutingPolicy, arrivals: Sequence[Arrival], figures: dict[str, float]) -> Figures:
    """The figures on a cluster of their own. Under `prefix` adds `dead_routes` to the figures as well."""
    with cluster(NUM_WORKERS, policy) as running:
        _warm_up(running)
        answers = running.play(arrivals)
        if policy is RoutingPolicy.PREFIX:
            dead = running.num_routed_to_dead_worker(arrivals[:AFTER_DEATH])
            figures["dead_routes"] = max(dead, figures.get("dead_routes", 0))
    best = sum(share * answer.prompt_tokens for share, answer in zip(best_shares(arrivals), answers, strict=True))
    loads: dict[str, int] = {}
    for answer in answers:
        loads[answer.worker] = loads.get(answer.worker, 0) + _work(answer)
    first_token_s = [answer.first_token_s for answer in answers]
    return Figures(
        cache_share=sum(answer.cached_tokens for answer in answers) / best,
        ttft_p50_s=quantile(first_token_s, 0.5),
        ttft_p90_s=quantile(first_token_s, 0.9),
        load_max_over_mean=max(loads.values()) * NUM_WORKERS / sum(loads.values()),
    )


def _work(answer: Answered) -> int:
    """What answering it cost its worker, in prompt tokens."""
    return answer.prompt_tokens - answer.cached_tokens + WRITING_COST * answer.output_tokens


def _warm_up(running: Cluster) -> None:
    """Have every worker answer requests: the first steps of a process are slow."""
    running.play([Arrival(0.1 * number, user_message("Say hello."), 4) for number in range(4 * NUM_WORKERS)])


def _comparison(by_policy: dict[RoutingPolicy, Figures], name: str, prefix: str) -> dict[str, float]:
    ours, at_random = by_policy[RoutingPolicy.PREFIX], by_policy[RoutingPolicy.RANDOM]
    return {
        f"{prefix}ttft_p90_{name}": at_random.ttft_p90_s / ours.ttft_p90_s,
        f"{prefix}cache_share_{name}": ours.cache_share,
        f"{prefix}load_max_over_mean_{name}": ours.load_max_over_mean,
    }


def _print(title: str, by_policy: dict[RoutingPolicy, Figures]) -> None:
    rows = [
        (
            policy,
            f"{figures.cache_share:.2f}",
            f"{figures.ttft_p50_s:.2f} s",
            f"{figures.ttft_p90_s:.2f} s",
            f"{figures.load_max_over_mean:.2f}",
        )
        for policy, figures in by_policy.items()
    ]
    print_table(("policy", "cached of the best", "TTFT p50", "TTFT p90", "busiest over mean"), rows, title)


if __name__ == "__main__":
    arguments = parser(__doc__)
    arguments.add_argument("--requests", type=int, default=120, help="for each policy at each rate")
    arguments.add_argument("--without-engines", action="store_true", help="the index and the simulator only")
    arguments.add_argument("--without-thousand", action="store_true", help="three workers only")
    options = arguments.parse_args()
    main(options.requests, with_engines=not options.without_engines, with_thousand=not options.without_thousand)
