"""Routing with real edge workers, in the index, and simulated for a thousand of them.

    python -m experiments.bench_routing [--requests N] [--without-engines] [--without-thousand]
                                                                                    (or make bench-routing)

Three edge workers with a thread each answer the same conversations under each policy in turn, at a low rate and at one
that saturates `random`: what they can do under `random` is measured first. The simulator is given what the engine's
steps cost here, and says beforehand what comes of it.
Caveats: three workers share this machine's cores, so times to the first token count relative to each other; answers
are short (16 tokens), since it is the prompts that routing is about.
"""

import argparse
import json
import os
import platform
import tempfile
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, cast

from rich.console import Console
from rich.table import Table

from broker import keys
from broker.connection import connect
from broker.prefix_blocks import canonical_bytes
from broker.prefix_index import PrefixIndex
from broker.routing import WRITING_COST
from config.settings import read_settings
from experiments.routing_cluster import Answered, Cluster, cluster
from experiments.routing_simulator import Machine, Simulation, quantile
from experiments.routing_workload import Ask, best_shares, conversations, traffic
from experiments.waiting import outcome_of
from firstdraft.cli.terminal import terminal
from firstdraft.local.embedded import embedded_server
from schemas.drafts import Draft
from schemas.requests import ConfidenceRule, Message, Sampling
from schemas.routing_decision import RoutingPolicy
from workers.edge.engine import DraftOrder, EdgeEngine
from workers.runtime.model_paths import edge_model_path

NUM_WORKERS = 3
#: Rates, as shares of what the workers can do under `random`.
LOW, HIGH = 0.4, 1.15
#: Requests that come all at once to find out what the workers can do. Prompts grow with the turns of a conversation,
#: and fewer would all be first ones.
AT_ONCE = 80
#: Tokens that are written to measure a step, and how often that is done.
WRITTEN, ROUNDS = 32, 3
#: The machine that is simulated where no engine is measured.
ASSUMED = Machine(
    step_s=0.001, answer_s=0.008, prompt_token_s=0.0022, attention_s=7e-6, reading_attention_s=1.7e-6, shared_cores=2
)
#: The simulated thousand: workers, and requests for each.
THOUSAND, REQUESTS_EACH = 1000, 40
#: Requests that are sent after a worker's death.
AFTER_DEATH = 30
#: Entries of the index, blocks of the prompt that is looked up, members of each block, and how often it is.
ENTRIES, PROMPT_BLOCKS, MEMBERS, LOOK_UPS = 1_000_000, 256, 4, 2000
#: Entries written in one go.
BATCH = 20_000


@dataclass(frozen=True)
class Figures:
    """What came of one policy at one rate, measured or simulated."""

    cache_share: float
    ttft_p50_s: float
    ttft_p90_s: float
    load_max_over_mean: float


def main(num_requests: int, *, with_engines: bool, with_thousand: bool) -> None:
    """Run everything, print tables and one JSON document."""
    console = terminal()
    figures: dict[str, float] = {"lookup_vs_ping": look_up_against_ping()}
    talks = conversations()
    machine = _measure(talks) if with_engines else ASSUMED
    at_once = traffic(talks, rate=1000.0, num_requests=AT_ONCE, num_workers=NUM_WORKERS)
    capacity = _measured_capacity(at_once) if with_engines else _simulated_capacity(machine, at_once)
    for name, share in (("low", LOW), ("high", HIGH)):
        asks = traffic(talks, rate=share * capacity, num_requests=num_requests, num_workers=NUM_WORKERS)
        foreseen = {policy: _simulated(machine, NUM_WORKERS, policy, asks) for policy in RoutingPolicy}
        _show(console, f"three workers, {share * capacity:.2f} requests/s, simulated", foreseen)
        figures |= _ratios(foreseen, name, "sim_")
        if with_engines:
            measured = {policy: _measured(policy, asks, figures) for policy in RoutingPolicy}
            _show(console, f"three workers, {share * capacity:.2f} requests/s, measured", measured)
            figures |= _ratios(measured, name, "")
            for policy in RoutingPolicy:
                foretold = foreseen[policy].ttft_p90_s / measured[policy].ttft_p90_s
                figures[f"sim_over_measured_ttft_p90_{policy}_{name}"] = foretold
    host = replace(machine, shared_cores=None)  # of a thousand workers each has a host to itself
    capacity_each = _simulated_capacity(host, at_once) / NUM_WORKERS
    for name, share in (("low", LOW), ("high", HIGH)) if with_thousand else ():
        rate = share * capacity_each * THOUSAND
        asks = traffic(talks, rate=rate, num_requests=THOUSAND * REQUESTS_EACH, num_workers=THOUSAND)
        foreseen = {policy: _simulated(host, THOUSAND, policy, asks) for policy in RoutingPolicy}
        _show(console, f"{THOUSAND} workers, {rate:.0f} requests/s, simulated", foreseen)
        figures |= _ratios(foreseen, name, "sim1000_")
    for prefix in ("", "sim_", "sim1000_"):
        if f"{prefix}cache_share_low" in figures:
            figures[f"{prefix}cache_share"] = min(figures[f"{prefix}cache_share_{name}"] for name in ("low", "high"))
            loads = [figures[f"{prefix}load_max_over_mean_{name}"] for name in ("low", "high")]
            figures[f"{prefix}load_max_over_mean"] = max(loads)
    about = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "requests": num_requests}
    print(json.dumps({"bench": "routing", "machine": about | {"steps": asdict(machine)}, "figures": figures}))


def look_up_against_ping() -> float:
    """The p99 of looking a long prompt up in a full index, over that of a bare PING."""
    with tempfile.TemporaryDirectory() as folder, embedded_server(Path(folder)) as url:
        redis = connect(url)
        index = PrefixIndex(redis, 3600)
        names = [f"edge-host-{member}@0123456789abcdef" for member in range(MEMBERS)]
        blocks = [number.to_bytes(8, "big") for number in range(ENTRIES // MEMBERS)]
        for start in range(0, len(blocks), BATCH // MEMBERS):
            with redis.pipeline(transaction=False) as pipeline:
                for place, block in enumerate(blocks[start : start + BATCH // MEMBERS], start):
                    # Of the prompt each member holds another share, which is the most that a look-up can have to do.
                    members = MEMBERS - place * MEMBERS // PROMPT_BLOCKS if place < PROMPT_BLOCKS else MEMBERS
                    held = dict.fromkeys(names[:members], "")
                    pipeline.hset(keys.prefix_block(block.hex()), mapping=cast("Any", held))
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


def _measure(talks: Sequence[tuple[Message, ...]]) -> Machine:
    """What the steps of one edge engine with one thread cost on this machine, while nothing else runs."""
    settings = read_settings(edge={"model": {"threads": 1}})
    engine = EdgeEngine(settings.edge, edge_model_path(settings))
    engine.start()

    def answer(words: tuple[Message, ...], *, num: int, max_tokens: int) -> tuple[float, list[Draft]]:
        """Seconds until so many requests for the same are answered, and their drafts."""
        orders = [
            DraftOrder(
                uuid.uuid4().hex,
                words,
                Sampling(max_tokens=max_tokens),
                ConfidenceRule(strategy="max_prob"),
                use_cache=False,
                cache_namespace="experiment",
                may_escalate_early=False,
            )
            for _ in range(num)
        ]
        began = time.perf_counter()
        drafts = [outcome_of(future, "a draft is written") for future in [engine.submit(order) for order in orders]]
        return time.perf_counter() - began, drafts

    def cost(words: tuple[Message, ...], *, num: int = 1) -> tuple[float, float, int]:
        """Seconds to read these words for so many, seconds of a step that writes for them, and the words' tokens."""
        reading, writing = [], []
        for _ in range(ROUNDS):
            reading_s, _ = answer(words, num=num, max_tokens=1)
            whole_s, drafts = answer(words, num=num, max_tokens=1 + WRITTEN)
            num_steps = max(max(len(draft.token_ids) for draft in drafts) - 1, 1)
            reading.append(reading_s)
            writing.append(max((whole_s - reading_s) / num_steps, 0.0))
        return median(reading), median(writing), drafts[0].prompt_tokens

    story = (Message(role="user", content="Tell a long story about the sea."),)
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


def _measured_capacity(at_once: Sequence[Ask]) -> float:
    """Requests a second that three workers do under `random`."""
    with cluster(NUM_WORKERS, RoutingPolicy.RANDOM) as running:
        _warm_up(running)
        began = time.perf_counter()
        running.play(at_once)
        return len(at_once) / (time.perf_counter() - began)


def _simulated_capacity(machine: Machine, at_once: Sequence[Ask]) -> float:
    outcome = _simulation(machine, NUM_WORKERS, RoutingPolicy.RANDOM).run(at_once)
    return len(at_once) / max(flight.first_token_s for flight in outcome.flights)


def _simulation(machine: Machine, num_workers: int, policy: RoutingPolicy) -> Simulation:
    settings = read_settings()
    return Simulation(
        machine,
        num_workers,
        policy,
        max_waiting=settings.routing.max_waiting,
        block_bytes=settings.prefix_index.block_bytes,
    )


def _simulated(machine: Machine, num_workers: int, policy: RoutingPolicy, asks: Sequence[Ask]) -> Figures:
    outcome = _simulation(machine, num_workers, policy).run(asks)
    sizes = [len(canonical_bytes(ask.messages)) for ask in asks]
    best = sum(share * size for share, size in zip(best_shares(asks), sizes, strict=True)) / sum(sizes)
    return Figures(
        cache_share=outcome.cached_share / best,
        ttft_p50_s=quantile(outcome.first_token_s, 0.5),
        ttft_p90_s=quantile(outcome.first_token_s, 0.9),
        load_max_over_mean=outcome.load_max_over_mean,
    )


def _measured(policy: RoutingPolicy, asks: Sequence[Ask], figures: dict[str, float]) -> Figures:
    """On workers of their own. Notes `dead_routes` as well, for what its policy is about."""
    with cluster(NUM_WORKERS, policy) as running:
        _warm_up(running)
        answers = running.play(asks)
        if policy is RoutingPolicy.PREFIX:
            dead = running.dead_routes(asks[:AFTER_DEATH])
            figures["dead_routes"] = max(dead, figures.get("dead_routes", 0))
    best = sum(share * answer.prompt_tokens for share, answer in zip(best_shares(asks), answers, strict=True))
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
    return answer.prompt_tokens - answer.cached_tokens + WRITING_COST * answer.written_tokens


def _warm_up(running: Cluster) -> None:
    """Every worker answers something: the first step of a process is slow."""
    message = Message(role="user", content="Say hello.")
    running.play([Ask(0.1 * number, (message,), 4) for number in range(4 * NUM_WORKERS)])


def _ratios(by_policy: dict[RoutingPolicy, Figures], name: str, prefix: str) -> dict[str, float]:
    ours, by_lot = by_policy[RoutingPolicy.PREFIX], by_policy[RoutingPolicy.RANDOM]
    return {
        f"{prefix}ttft_p90_{name}": by_lot.ttft_p90_s / ours.ttft_p90_s,
        f"{prefix}cache_share_{name}": ours.cache_share,
        f"{prefix}load_max_over_mean_{name}": ours.load_max_over_mean,
    }


def _show(console: Console, title: str, by_policy: dict[RoutingPolicy, Figures]) -> None:
    table = Table("policy", "cached of the best", "TTFT p50", "TTFT p90", "busiest over mean", title=title)
    for policy, figures in by_policy.items():
        table.add_row(
            policy,
            f"{figures.cache_share:.2f}",
            f"{figures.ttft_p50_s:.2f} s",
            f"{figures.ttft_p90_s:.2f} s",
            f"{figures.load_max_over_mean:.2f}",
        )
    console.print(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=120, help="for each policy at each rate")
    parser.add_argument("--without-engines", action="store_true", help="the index and the simulator only")
    parser.add_argument("--without-thousand", action="store_true", help="three workers only")
    arguments = parser.parse_args()
    main(arguments.requests, with_engines=not arguments.without_engines, with_thousand=not arguments.without_thousand)
