"""`make chaos`: faults of every kind while requests come in, and what became of each request that was accepted.

    python -m experiments.chaos [--requests 2000] [--fault NAME] [--engines]

Everything is a real process: Redis, a gateway, three workers of each tier, around stand-in engines that obey the
engines' own protocol, for volume; `--engines` adds a phase on llama.cpp and vLLM. A request counts as accepted when the
gateway has answered 202; submissions are repeated with their idempotency key until it does. `recovery` is the time from
a worker's death to the next attempt at what it had in hand, by Redis's clock.
"""

import argparse
import json
import os
import random
import sys
import tempfile
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
from redis.exceptions import RedisError
from rich.console import Console
from rich.table import Table

from experiments.chaos import engines
from experiments.chaos.faults import FAULTS, Fault
from experiments.chaos.ledger import Story, counted, figures, first_start_after, has_ended, read_story
from experiments.chaos.system import System, running, until

#: Workers of each tier, and submitters.
NUM_WORKERS, NUM_SUBMITTERS = 3, 8
#: Seconds in which what was accepted must have ended once its phase is over.
SETTLE_S = 120.0
#: Seconds between tries to submit, and between requests of one submitter: a phase lasts some seconds.
AGAIN_S, EVERY_S = 0.2, 0.25


def main() -> int:
    """Run the phases, print a table and one JSON document; answers 1 if a promise was not kept."""
    arguments = _arguments()
    faults = [fault for fault in FAULTS if arguments.fault in (None, fault.name)]
    per_fault = max(1, -(-arguments.requests // len(faults)))
    console = Console()
    results: dict[str, dict[str, float | int | None]] = {}
    everything: list[Story] = []
    strays: list[float] = []
    with tempfile.TemporaryDirectory(prefix="firstdraft-chaos-") as folder, running(Path(folder)) as system:
        _start_workers(system)
        system.wait_until_ready()
        for fault in faults:
            stories, stray, stale = _phase(system, fault, per_fault)
            results[fault.name] = figures(stories, stale, stray)
            everything += stories
            strays += stray
            console.print(f"{fault.name}: {results[fault.name]}", soft_wrap=True)
        if arguments.engines:
            for name in [member.name for member in system.workers()]:
                system.remove(name)
            for name, stories, stale in engines.phases(system, _submit_all, _wait_for_all):
                results[name] = figures(stories, stale)
                everything += stories
        stale = sum(int(result["stale_refused"] or 0) for result in results.values())
        total = figures(everything, stale, strays)
    _print(console, results, total)
    machine = {"cores": os.cpu_count(), "workers": 2 * NUM_WORKERS}
    print(json.dumps({"bench": "chaos", "machine": machine, "figures": total | {"faults": results}}))
    kept = total["terminal"] == total["accepted"] and not total["lost"] and not total["double_commits"]
    return 0 if kept and (total["recovery_p99_s"] or 0) < 20 else 1


def _phase(system: System, fault: Fault, num: int) -> tuple[list[Story], list[float], int]:
    """The stories of the phase's requests, recoveries of requests that nobody held, and refused stale commits."""
    stale_before = counted(system.redis, "stale_commits")
    deaths_before = len(system.book.read_text().splitlines()) if system.book.exists() else 0
    fault.prepare(system)
    disturbing = threading.Thread(target=fault.disturb, args=(system,))
    disturbing.start()
    ids = _submit_all(system, [_prompt(fault, place) for place in range(num)])
    disturbing.join()
    fault.settle(system)
    _wait_for_all(system, ids)
    deaths = system.deaths()
    stories = [read_story(system.redis, request_id, deaths) for request_id in ids]
    lines = system.book.read_text().splitlines()[deaths_before:] if system.book.exists() else []
    popped = [told for told in map(json.loads, lines) if told["step"] == "popped"]
    strays = [first_start_after(system.redis, told["request_id"], told["at_s"]) for told in popped]
    system.wait_until_ready()
    stale = counted(system.redis, "stale_commits") - stale_before
    return stories, [one for one in strays if one is not None], stale


def _prompt(fault: Fault, place: int) -> str:
    words = f"phase {fault.name} number {place} {uuid.uuid4().hex}"
    if place < len(fault.poison):
        return f"{fault.poison[place]} {words}"
    return f"unsure {words}" if place % 2 else words


def _submit_all(system: System, prompts: list[str], max_tokens: int = 12) -> list[str]:
    """Submit every prompt until it is accepted; the ids."""
    with ThreadPoolExecutor(NUM_SUBMITTERS) as pool, httpx.Client(trust_env=False, timeout=10) as client:

        def submit(prompt: str) -> str:
            time.sleep(EVERY_S * random.random() * 2)
            key = {"Idempotency-Key": uuid.uuid4().hex}
            while True:
                try:
                    body = {"prompt": prompt, "max_tokens": max_tokens}
                    answer = client.post(f"{system.url}/v1/jobs", json=body, headers=key)
                    if answer.status_code == httpx.codes.ACCEPTED:
                        return str(answer.json()["id"])
                    if answer.status_code < httpx.codes.INTERNAL_SERVER_ERROR:
                        raise RuntimeError(f"refused: {answer.text}")
                except httpx.TransportError:
                    pass  # the gateway was killed; whether it had accepted, the key will tell
                time.sleep(AGAIN_S)

        return list(pool.map(submit, prompts))


def _wait_for_all(system: System, ids: list[str], within_s: float = SETTLE_S) -> None:
    """Wait until all have ended; what has not by then is told by the figures."""
    unfinished = set(ids)

    def all_ended() -> bool:
        try:
            ended = {one for one in unfinished if has_ended(system.redis, one)}
        except RedisError:
            return False
        unfinished.difference_update(ended)
        time.sleep(AGAIN_S)  # looking must not keep the two cores from working
        return not unfinished

    try:
        until(all_ended, "all requests end", within_s)
    except TimeoutError:
        print(f"not ended: {sorted(unfinished)[:5]} and {len(unfinished)} in all", file=sys.stderr)


def _start_workers(system: System) -> None:
    for place in range(NUM_WORKERS):
        for tier in ("edge", "cloud"):
            system.add_worker(f"{tier}-{place}", tier)


def _print(
    console: Console, results: dict[str, dict[str, float | int | None]], total: dict[str, float | int | None]
) -> None:
    table = Table("fault", *total)
    for name, row in [*results.items(), ("all", total)]:
        table.add_row(name, *("" if value is None else f"{value:g}" for value in row.values()))
    console.print(table)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000, help="of all phases on stand-ins together")
    parser.add_argument("--fault", choices=[fault.name for fault in FAULTS], help="one phase alone")
    parser.add_argument("--engines", action="store_true", help="add phases on real engines (minutes)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
