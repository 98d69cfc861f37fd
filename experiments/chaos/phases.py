"""One phase: requests come in while a fault is done to the system, and what became of them."""

import time
import traceback
import uuid
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from experiments.chaos.faults import Fault
from experiments.chaos.ledger import Figures, Story, counted, figures, first_start_after, read_story
from experiments.chaos.submission import submit_all, wait_for_all
from experiments.chaos.system import System
from experiments.waiting import outcome_of

#: Seconds that doing a fault may take: its own waits end long before.
DISTURB_S = 600.0
#: Seconds in which what was accepted must have ended once its phase is over.
SETTLE_S = 120.0


@dataclass
class Outcome:
    """What a phase came to."""

    name: str
    stories: list[Story] = field(default_factory=list)
    stale_refused: int = 0
    #: Seconds from a death to the next start of a request that the dead worker had popped and not yet in hand.
    strays_s: list[float] = field(default_factory=list)
    #: Why it does not count as passed.
    problems: list[str] = field(default_factory=list)

    def figures(self) -> Figures:
        """The figures of the phase."""
        return figures(self.stories, self.stale_refused, self.strays_s)


def run_phase(system: System, fault: Fault, num: int) -> Outcome:
    """Submit at least `num` requests, and more until the fault is over. Whatever goes wrong is a problem it names."""
    outcome = Outcome(fault.name)
    try:
        _run(system, fault, num, outcome)
    except Exception as error:  # noqa: BLE001 - told in the outcome; the other phases still have something to tell
        traceback.print_exc()
        outcome.problems.append(f"{fault.name}: {error!r}")
        return outcome
    found = outcome.figures()
    if found["failed"] != len(fault.poison):
        outcome.problems.append(f"{fault.name}: {found['failed']} requests failed; {len(fault.poison)} should have")
    if fault.shows is not None and not found[fault.shows]:
        outcome.problems.append(f"{fault.name}: {fault.shows} is 0, so the fault did not strike")
    return outcome


def _run(system: System, fault: Fault, num: int, outcome: Outcome) -> None:
    stale_before, fates_before = counted(system.redis, "stale_commits"), len(system.fates())
    fault.prepare(system)
    with ThreadPoolExecutor(1) as pool:
        disturbing = pool.submit(fault.disturb, system)
        ids = submit_all(system, _prompts(fault, num, disturbing))
        outcome_of(disturbing, f"the fault {fault.name} is over", DISTURB_S)
    fault.settle(system)
    wait_for_all(system, ids, SETTLE_S)
    deaths = system.deaths()
    outcome.stories = [read_story(system.redis, request_id, deaths) for request_id in ids]
    popped = [told for told in system.fates()[fates_before:] if told["step"] == "popped"]
    strays = [first_start_after(system.redis, told["request_id"], told["at_s"]) for told in popped]
    outcome.strays_s = [one for one in strays if one is not None]
    system.wait_until_ready()
    outcome.stale_refused = counted(system.redis, "stale_commits") - stale_before


def _prompts(fault: Fault, num: int, disturbing: "Future[None]") -> Iterator[str]:
    place, deadline = 0, time.monotonic() + DISTURB_S
    while place < num or not (disturbing.done() or time.monotonic() > deadline):
        words = f"number {place} {uuid.uuid4().hex}"  # nothing that a stand-in engine obeys
        special = fault.poison[place] if place < len(fault.poison) else "unsure" if place % 2 else ""
        yield f"{special} {words}".lstrip()
        place += 1
