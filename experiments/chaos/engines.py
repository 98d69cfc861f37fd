"""The phases on real engines: fewer requests, and the same promises."""

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

from experiments.chaos.faults import SLEEP_S
from experiments.chaos.ledger import Story, counted, read_story
from experiments.chaos.system import System

#: Requests of each phase, and the longest answer.
NUM_REQUESTS, MAX_TOKENS = 12, 48
#: Seconds after the first submission at which the fault comes, and in which everything must have ended: an engine
#: that was killed takes a minute to be there again.
AFTER_S, SETTLE_S = 3.0, 300.0

Submit = Callable[[System, list[str], int], list[str]]
Wait = Callable[[System, list[str], float], None]


def phases(system: System, submit: Submit, wait: Wait) -> Iterator[tuple[str, list[Story], int]]:
    """Start an edge and a cloud worker on their engines, disturb each, and tell what became of the requests."""
    for tier in ("edge", "cloud"):
        system.add(f"{tier}-engine", [sys.executable, "-m", f"workers.{tier}"])
    system.wait_until_ready()
    for name, disturb in (
        ("engine_edge_killed", _kill("edge")),
        ("engine_cloud_killed", _kill("cloud")),
        ("engine_edge_slept", _sleep),
    ):
        stale = counted(system.redis, "stale_commits")
        disturbing = threading.Thread(target=disturb, args=(system,))
        disturbing.start()
        prompts = [f"Tell me something about the number {name} {place}." for place in range(NUM_REQUESTS)]
        ids = submit(system, prompts, MAX_TOKENS)
        disturbing.join()
        wait(system, ids, SETTLE_S)
        # Not the dead one's own next life but any worker that took the work up ends a recovery; here there is only the
        # one of its tier, whose engine starts first, so recoveries are not counted.
        yield name, [read_story(system.redis, one, {}) for one in ids], counted(system.redis, "stale_commits") - stale


def _kill(tier: str) -> Callable[[System], None]:
    def disturb(system: System) -> None:
        time.sleep(AFTER_S)
        system.members[f"{tier}-engine"].signal(signal.SIGKILL)

    return disturb


def _sleep(system: System) -> None:
    time.sleep(AFTER_S)
    system.members["edge-engine"].signal(signal.SIGSTOP)
    time.sleep(SLEEP_S)
    system.members["edge-engine"].signal(signal.SIGCONT)
