"""How many Redis commands a request takes, how many an idle system sends, and round trips until a job is accepted.

    python -m experiments.redis_commands

A gateway, an edge worker and a cloud worker run as processes; their fake engines answer with one token at once. A
request is one POST /v1/jobs and one GET that waits for its end, one request after the other. Commands are those of
`INFO commandstats`, where a script counts once and each command in it once more; the idle rate is subtracted. Round
trips are those of the gateway between sending a POST and its 202, counted by a proxy between the gateway and Redis: a
pipeline or a transaction is one. Needs a Redis server that nobody else uses.
"""

import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import httpx
from redis import Redis

from experiments.harness.redis_proxy import RedisProxy, redis_proxy
from experiments.harness.report import print_document, print_table
from experiments.harness.system import System, running_system
from firstdraft.cli.terminal import terminal
from firstdraft.local.embedded import embedded_server

#: Requests over which commands are averaged, and requests before that, which open connections and load scripts.
NUM_REQUESTS, NUM_WARM_UP = 50, 10
#: Seconds for which the idle system is watched.
IDLE_S = 10.0
#: Seconds after the last request in which workers finish what they do after the answer.
SETTLE_S = 1.0
#: Seconds that one request may take.
REQUEST_S = 30
#: First words of the prompt that the fake edge is sure of, and of the one that it escalates.
PROMPTS = {"edge": "sure", "cloud": "unsure"}
#: Commands per request, or per second, below which the table leaves a command out.
NEGLIGIBLE = 0.05


@dataclass(frozen=True)
class RedisCommands:
    """Commands by name: per request that each tier answers, and per second of the idle system."""

    edge: Mapping[str, float]
    escalated: Mapping[str, float]
    idle_per_s: Mapping[str, float]
    round_trips_submit: float

    def figures(self) -> dict[str, float]:
        """The figures of the JSON document."""
        return {
            "redis_commands_edge": round(sum(self.edge.values()), 1),
            "redis_commands_escalated": round(sum(self.escalated.values()), 1),
            "redis_commands_idle_per_s": round(sum(self.idle_per_s.values()), 1),
            "round_trips_submit": round(self.round_trips_submit, 2),
        }


def measure(redis_url: str) -> dict[str, float]:
    """The figures of a system on this Redis server, which nobody else may use meanwhile. Blocks for half a minute."""
    return measure_commands(redis_url).figures()


def measure_commands(redis_url: str) -> RedisCommands:
    """As `measure`, by command name."""
    with redis_proxy(redis_url) as proxy, running_system({"REDIS_URL": proxy.url}, redis_url=redis_url) as system:
        for tier in PROMPTS:
            system.add_fake_worker(tier, tier, token_s=0)
        system.wait_until_ready()
        with httpx.Client(base_url=system.url, trust_env=False, timeout=REQUEST_S) as client:
            for tier in PROMPTS:
                for _ in range(NUM_WARM_UP):
                    _wait(client, tier, _submit(client, tier))
            time.sleep(SETTLE_S)
            idle, idle_round_trips = _idle_rates(system.redis, proxy)
            edge, round_trips = _requests(system, client, "edge", idle, proxy, idle_round_trips)
            escalated, _ = _requests(system, client, "cloud", idle, proxy, idle_round_trips)
    return RedisCommands(edge, escalated, idle, round_trips)


def _idle_rates(redis: Redis, proxy: RedisProxy) -> tuple[dict[str, float], float]:
    """Commands of the whole system, and round trips of its gateway, per second."""
    before, round_trips_before, began = _command_counts(redis), proxy.num_round_trips, time.perf_counter()
    time.sleep(IDLE_S)
    seconds = time.perf_counter() - began
    calls = _command_counts(redis) - before
    return {name: num / seconds for name, num in calls.items()}, (proxy.num_round_trips - round_trips_before) / seconds


def _requests(
    system: System,
    client: httpx.Client,
    tier: str,
    idle: Mapping[str, float],
    proxy: RedisProxy,
    idle_round_trips: float,
) -> tuple[dict[str, float], float]:
    """Commands per request, and the gateway's round trips per submission."""
    before, began = _command_counts(system.redis), time.perf_counter()
    round_trips, submitting_s = 0, 0.0
    for _ in range(NUM_REQUESTS):
        round_trips_before, submitted = proxy.num_round_trips, time.perf_counter()
        job_id = _submit(client, tier)
        round_trips += proxy.num_round_trips - round_trips_before
        submitting_s += time.perf_counter() - submitted
        _wait(client, tier, job_id)
    time.sleep(SETTLE_S)
    calls = _command_counts(system.redis)
    calls.subtract(before)
    seconds = time.perf_counter() - began
    per_request = {name: (num - idle.get(name, 0.0) * seconds) / NUM_REQUESTS for name, num in calls.items()}
    return per_request, (round_trips - idle_round_trips * submitting_s) / NUM_REQUESTS


def _submit(client: httpx.Client, tier: str) -> str:
    """Submit a job that the tier answers with one token; its id."""
    body = {"prompt": f"{PROMPTS[tier]} {uuid.uuid4().hex}", "max_tokens": 1}
    return str(client.post("/v1/jobs", json=body).raise_for_status().json()["id"])


def _wait(client: httpx.Client, tier: str, job_id: str) -> None:
    """Block until the job has ended. Raises RuntimeError unless the tier answered it."""
    job = client.get(f"/v1/jobs/{job_id}", params={"wait": REQUEST_S - 1}).raise_for_status().json()
    if job["status"] != "succeeded" or job["result"]["tier"] != tier:
        raise RuntimeError(f"the {tier} should have answered, but: {job}")


def _command_counts(redis: Redis) -> Counter[str]:
    """Calls of each command since the server's start, without the INFO that asks for it."""
    statistics = cast("dict[str, dict[str, int]]", redis.info("commandstats"))
    counts = Counter({name.removeprefix("cmdstat_"): each["calls"] for name, each in statistics.items()})
    del counts["info"]
    return counts


def main() -> None:
    """Measure on a server of its own; print a table and one JSON document."""
    with tempfile.TemporaryDirectory() as folder, embedded_server(Path(folder)) as url:
        commands = measure_commands(url)
    columns = (commands.edge, commands.escalated, commands.idle_per_s)
    names = sorted(set().union(*columns), key=lambda name: -commands.escalated.get(name, 0.0))
    by_name = {name: [column.get(name, 0.0) for column in columns] for name in names}
    rows = [(name, *(f"{num:.1f}" for num in row)) for name, row in by_name.items() if max(row) >= NEGLIGIBLE]
    rows.append(("all", *(f"{sum(column.values()):.1f}" for column in columns)))
    print_table(("command", "per request, edge", "per request, escalated", "per second, idle"), rows)
    terminal().print(f"round trips to Redis from a POST to its 202: {commands.round_trips_submit:.2f}")
    print_document("redis_commands", commands.figures(), requests=NUM_REQUESTS)


if __name__ == "__main__":
    main()
