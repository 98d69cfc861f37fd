"""`make soak`: load and restarts for a long time; the memory of every process and of Redis must stay flat.

    python -m experiments.soak [--minutes 30]

Two workers of each tier around stand-in engines. One of each pair is told to stop again and again and comes back; the
others, the gateway and Redis live through the whole run, and their memory is what is looked at.
"""

import argparse
import json
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
import uuid
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import cast

import httpx
import psutil
from redis import Redis
from rich.table import Table

from broker.states import FINISHED
from experiments.chaos.ledger import counted
from experiments.chaos.system import System, running
from experiments.waiting import outcome_of, until
from firstdraft.cli.terminal import terminal

#: Threads that submit and wait, and seconds between one's requests.
NUM_CLIENTS, EVERY_S = 8, 0.4
#: Seconds between looks at memory, and between restarts.
LOOK_S, RESTART_EVERY_S = 5.0, 20.0
#: Seconds that the last requests and the last restart may take.
LAST_S = 120.0
#: The first share of the run warms up and is left out.
WARM_UP_SHARE = 0.3
#: Growth from the first half of what is left to the second that counts as flat: a share, or so many MB.
FLAT_SHARE, FLAT_MB = 0.05, 6.0
#: What is kept is kept this long, in seconds, so that a run of minutes sees things go again.
KEPT_S = 20
SHORT_LIVES = {"FIRSTDRAFT_REQUESTS__RESULT_TTL_S": str(KEPT_S), "FIRSTDRAFT_REQUESTS__GONE_TTL_S": str(KEPT_S)}
#: Keys that live as long as what they list: RQ's sets of queues and workers, and which workers have a queue.
LASTING = ("rq:queues", "rq:workers", "firstdraft:workers:")


def main() -> int:
    """Run, print a table and one JSON document; answers 1 if something grew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    seconds = parser.parse_args().minutes * 60
    with (
        tempfile.TemporaryDirectory(prefix="firstdraft-soak-") as folder,
        running(Path(folder), **SHORT_LIVES) as system,
    ):
        for tier in ("edge", "cloud"):
            for kind in ("steady", "restarted"):
                system.add_worker(f"{tier}-{kind}", tier, fate=None, **SHORT_LIVES)
        system.wait_until_ready()
        ended = threading.Event()
        clients = ThreadPoolExecutor(NUM_CLIENTS + 1)
        loads = [clients.submit(_load, system, ended) for _ in range(NUM_CLIENTS)]
        restarts = clients.submit(_restart, system, ended)
        try:
            memory = _watch(system, seconds)
        finally:
            ended.set()  # the threads would keep the process
        answered = sum(outcome_of(load, "a client's last request ends", LAST_S) for load in loads)
        restarted = outcome_of(restarts, "the last restart is over", LAST_S)
        until(lambda: system.redis.exists("firstdraft:charges") == 0, "everything ends", 60.0)
        lasting = _lasting_keys(system.redis)
        accepted = counted(system.redis, "accepted")
    growth = {name: _growth(samples) for name, samples in memory.items()}
    flat = all(late - early <= max(FLAT_SHARE * early, FLAT_MB) for early, late in growth.values())
    table = Table("process", "MB early", "MB late")
    for name, (early, late) in growth.items():
        table.add_row(name, f"{early:.1f}", f"{late:.1f}")
    terminal().print(table)
    figures = {
        "minutes": seconds / 60,
        "accepted": accepted,
        "answered": answered,
        "restarts": restarted,
        "flat": flat,
        "mb": {name: {"early": round(early, 1), "late": round(late, 1)} for name, (early, late) in growth.items()},
        "keys_without_ttl": lasting,
    }
    print(json.dumps({"bench": "soak", "figures": figures}))
    return 0 if flat and not lasting else 1


def _load(system: System, ended: threading.Event) -> int:
    """Submit and wait, over and over; how many were answered."""
    answered = 0
    with httpx.Client(base_url=system.url, trust_env=False, timeout=30) as client:
        while not ended.wait(EVERY_S * 2 * random.random()):
            kind = random.choice(("", "unsure ", "refuse ", "break ", "slow "))
            with suppress(httpx.TransportError):
                job = client.post("/v1/jobs", json={"prompt": f"{kind}{uuid.uuid4().hex}", "max_tokens": 12}).json()
                if random.random() < 0.1:
                    client.delete(f"/v1/jobs/{job['id']}")
                status = client.get(f"/v1/jobs/{job['id']}?wait=20").json().get("status")
                answered += status in FINISHED
    return answered


def _restart(system: System, ended: threading.Event) -> int:
    """Tell one of the restarted workers to stop, in turn; it comes back. How often."""
    times = 0
    while not ended.wait(RESTART_EVERY_S):
        system.members[("edge-restarted", "cloud-restarted")[times % 2]].signal(signal.SIGTERM)
        times += 1
    return times


def _watch(system: System, seconds: float) -> dict[str, list[float]]:
    """Megabytes of every lasting process, looked at from time to time."""
    samples: dict[str, list[float]] = defaultdict(list)
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        time.sleep(LOOK_S)
        for name in ("redis", "gateway", "edge-steady", "cloud-steady"):
            process = system.members[name].process
            if process is not None:
                whole = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
                samples[name].append(sum(one.memory_info().rss for one in whole) / 1e6)
        used = cast("dict[str, int]", system.redis.info("memory"))["used_memory"]
        samples["redis, its data"].append(used / 1e6)
    return samples


def _growth(samples: list[float]) -> tuple[float, float]:
    """Medians of the two halves of the samples after the warm-up."""
    kept = samples[int(len(samples) * WARM_UP_SHARE) :]
    return statistics.median(kept[: len(kept) // 2]), statistics.median(kept[len(kept) // 2 :])


def _lasting_keys(redis: Redis) -> list[str]:
    """Keys that would stay for ever although nothing is unfinished."""
    lasting = [name.decode() for name in redis.scan_iter("*", count=1000) if redis.ttl(name) == -1]
    return sorted(name for name in lasting if not name.startswith(LASTING))


if __name__ == "__main__":
    sys.exit(main())
