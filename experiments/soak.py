"""`make soak`: load and restarts for a long time; the memory of every process and of Redis must not grow.

    python -m experiments.soak [--minutes 30]

Two workers of each tier run on fake engines. One of each pair is stopped again and again and restarted; the others, the
gateway and Redis live through the whole run, and theirs is the memory that is measured.
"""

import random
import statistics
import sys
import threading
import time
import uuid
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from signal import SIGTERM
from typing import cast

import httpx
from redis import Redis

from broker.states import FINISHED
from experiments.harness.memory import resident_of_tree_mb
from experiments.harness.report import parser, print_document, print_table
from experiments.harness.system import System, running_system
from experiments.waiting import outcome_of, until
from schemas.policy import Tier

#: Client threads, and the mean of the seconds between two requests of one.
NUM_CLIENTS, EVERY_S = 8, 0.4
#: Seconds between samples of memory, and between restarts.
SAMPLE_S, RESTART_EVERY_S = 5.0, 20.0
#: Seconds that the last requests and the last restart may take.
LAST_S = 120.0
#: The first share of the run warms up and is left out.
WARM_UP_SHARE = 0.3
#: Growth from the first half of the remaining samples to the second that counts as flat: a share, or MB.
FLAT_SHARE, FLAT_MB = 0.05, 6.0
#: Seconds for which results are kept, so that a run of minutes sees them expire.
RESULT_TTL_S = "20"
ENVIRONMENT = {"FIRSTDRAFT_REQUESTS__RESULT_TTL_S": RESULT_TTL_S, "FIRSTDRAFT_REQUESTS__GONE_TTL_S": RESULT_TTL_S}
#: Keys that live as long as what they list: RQ's sets of queues and workers, and which workers have a queue.
LASTING = ("rq:queues", "rq:workers", "firstdraft:workers:")


def main() -> int:
    """Run, print a table and one JSON document; the exit status is 1 if something grew."""
    arguments = parser(__doc__)
    arguments.add_argument("--minutes", type=float, default=30.0)
    seconds = arguments.parse_args().minutes * 60
    with running_system(ENVIRONMENT) as system:
        for tier in Tier:
            for name in ("steady", "restarted"):
                system.add_fake_worker(f"{tier}-{name}", tier, environment=ENVIRONMENT)
        system.wait_until_ready()
        ending = threading.Event()
        pool = ThreadPoolExecutor(NUM_CLIENTS + 1)
        clients = [pool.submit(_submit_and_wait, system, ending) for _ in range(NUM_CLIENTS)]
        restarts = pool.submit(_restart_workers, system, ending)
        try:
            memory = _sample_memory(system, seconds)
        finally:
            ending.set()  # the threads would keep the process alive
        answered = sum(outcome_of(client, "a client's last request ends", LAST_S) for client in clients)
        num_restarts = outcome_of(restarts, "the last restart is over", LAST_S)
        until(lambda: system.redis.exists("firstdraft:charges") == 0, "all requests end", 60.0)
        lasting = _keys_without_ttl(system.redis)
        accepted = system.counter("accepted")
    growth = {name: _early_and_late(samples) for name, samples in memory.items()}
    grown = [
        f"{name} grew from {early:.1f} to {late:.1f} MB"
        for name, (early, late) in growth.items()
        if late - early > max(FLAT_SHARE * early, FLAT_MB)
    ]
    rows = [(name, f"{early:.1f}", f"{late:.1f}") for name, (early, late) in growth.items()]
    print_table(["process", "MB early", "MB late"], rows)
    figures = {
        "minutes": seconds / 60,
        "accepted": accepted,
        "answered": answered,
        "restarts": num_restarts,
        "flat": not grown,
        "mb": {name: {"early": round(early, 1), "late": round(late, 1)} for name, (early, late) in growth.items()},
        "keys_without_ttl": lasting,
    }
    return print_document("soak", figures, [*grown, *(f"{key} would stay for ever" for key in lasting)])


def _submit_and_wait(system: System, ending: threading.Event) -> int:
    """Submit requests and wait for each until `ending` is set; how many ended."""
    num_ended = 0
    with httpx.Client(base_url=system.url, trust_env=False, timeout=30) as client:
        while not ending.wait(EVERY_S * 2 * random.random()):
            command = random.choice(("", "unsure ", "refuse ", "break ", "slow "))
            with suppress(httpx.TransportError):
                job = client.post("/v1/jobs", json={"prompt": f"{command}{uuid.uuid4().hex}", "max_tokens": 12}).json()
                if random.random() < 0.1:
                    client.delete(f"/v1/jobs/{job['id']}")
                status = client.get(f"/v1/jobs/{job['id']}?wait=20").json().get("status")
                num_ended += status in FINISHED
    return num_ended


def _restart_workers(system: System, ending: threading.Event) -> int:
    """Stop the `restarted` workers in turn until `ending` is set; how often one was stopped."""
    num_restarts = 0
    while not ending.wait(RESTART_EVERY_S):
        system.processes[("edge-restarted", "cloud-restarted")[num_restarts % 2]].send_signal(SIGTERM)
        num_restarts += 1
    return num_restarts


def _sample_memory(system: System, seconds: float) -> dict[str, list[float]]:
    """Megabytes of every process that is not restarted, sampled for so long."""
    samples: dict[str, list[float]] = defaultdict(list)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(SAMPLE_S)
        for name in ("redis", "gateway", "edge-steady", "cloud-steady"):
            process = system.processes[name].process
            if process is not None:
                samples[name].append(resident_of_tree_mb(process.pid))
        used = cast("dict[str, int]", system.redis.info("memory"))["used_memory"]
        samples["redis, its data"].append(used / 1e6)
    return samples


def _early_and_late(samples: list[float]) -> tuple[float, float]:
    """Medians of the two halves of the samples after the warm-up."""
    kept = samples[int(len(samples) * WARM_UP_SHARE) :]
    return statistics.median(kept[: len(kept) // 2]), statistics.median(kept[len(kept) // 2 :])


def _keys_without_ttl(redis: Redis) -> list[str]:
    """Keys that would stay for ever although no request is unfinished."""
    lasting = [name.decode() for name in redis.scan_iter("*", count=1000) if redis.ttl(name) == -1]
    return sorted(name for name in lasting if not name.startswith(LASTING))


if __name__ == "__main__":
    sys.exit(main())
