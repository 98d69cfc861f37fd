"""The phases on real engines: fewer requests, and the same promises."""

import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from experiments.chaos.faults import SLEEP_S
from experiments.chaos.ledger import counted, read_story
from experiments.chaos.phases import Outcome
from experiments.chaos.submission import submit_all, wait_for_all
from experiments.chaos.system import System
from experiments.waiting import outcome_of
from schemas.policy import Tier

#: Requests of each phase, and the longest answer.
NUM_REQUESTS, MAX_TOKENS = 12, 48
#: Seconds after the first submission at which the fault comes, and in which everything must have ended: an engine
#: that was killed takes a minute to be there again.
AFTER_S, SETTLE_S = 3.0, 300.0


def engine_phases(system: System) -> Iterator[Outcome]:
    """Start an edge and a cloud worker on their engines, disturb each, and tell what became of the requests."""
    for tier in Tier:
        system.add(f"{tier}-engine", [sys.executable, "-m", f"workers.{tier}"])
    system.wait_until_ready()
    for fault, tier in (("killed", Tier.EDGE), ("killed", Tier.CLOUD), ("slept", Tier.EDGE)):
        outcome = Outcome(f"engine_{tier}_{fault}")
        stale_before = counted(system.redis, "stale_commits")
        with ThreadPoolExecutor(1) as pool:
            disturbing = pool.submit(_kill if fault == "killed" else _sleep, system, tier)
            prompts = [f"Tell me something about the number {place}." for place in range(NUM_REQUESTS)]
            ids = submit_all(system, prompts, MAX_TOKENS)
            outcome_of(disturbing, f"the {tier} engine is {fault}", SETTLE_S)
        wait_for_all(system, ids, SETTLE_S)
        # A recovery ends when any worker takes the work up; here there is only the one of the tier, whose engine has
        # to start first, so recoveries are not counted.
        outcome.stories = [read_story(system.redis, one, {}) for one in ids]
        outcome.stale_refused = counted(system.redis, "stale_commits") - stale_before
        if failed := outcome.figures()["failed"]:
            outcome.problems.append(f"{outcome.name}: {failed} requests failed; none should have")
        yield outcome


def _kill(system: System, tier: Tier) -> None:
    time.sleep(AFTER_S)
    system.members[f"{tier}-engine"].signal(signal.SIGKILL)


def _sleep(system: System, tier: Tier) -> None:
    time.sleep(AFTER_S)
    system.members[f"{tier}-engine"].signal(signal.SIGSTOP)
    time.sleep(SLEEP_S)
    system.members[f"{tier}-engine"].signal(signal.SIGCONT)
