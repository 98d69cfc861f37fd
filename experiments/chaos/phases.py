"""One phase: a fault is injected while requests are submitted, and the outcome of each request is read."""

import time
import traceback
import uuid
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from experiments.chaos.faults import Fault
from experiments.chaos.outcomes import Figures, RequestOutcome, figures, read_outcome
from experiments.chaos.submission import submit_all, wait_for_all
from experiments.harness.system import System
from experiments.waiting import outcome_of

#: Seconds that injecting a fault may take; its own waits end long before.
INJECT_S = 600.0


@dataclass(frozen=True)
class Workload:
    """What is submitted in a phase."""

    num_requests: int
    max_tokens: int = 12
    #: Whether more requests are submitted until the fault is over.
    until_over: bool = True
    #: Whether recoveries are counted. With one worker of the tier, they would measure the start of its engine.
    counts_recoveries: bool = True
    #: Seconds in which all requests must have ended after the last was submitted.
    settle_s: float = 120.0


@dataclass
class PhaseResult:
    """What became of a phase's requests."""

    name: str
    outcomes: list[RequestOutcome] = field(default_factory=list)
    stale_refused: int = 0
    #: Why the phase did not pass.
    problems: list[str] = field(default_factory=list)

    def figures(self) -> Figures:
        """The figures of the phase."""
        return figures(self.outcomes, self.stale_refused)


def run_phase(system: System, fault: Fault, workload: Workload) -> PhaseResult:
    """Submit the workload while the fault is injected. Does not raise: every failure is a problem of the result."""
    result = PhaseResult(fault.name)
    try:
        _run(system, fault, workload, result)
    except Exception as error:  # noqa: BLE001 - reported as a problem; the other phases still have their results
        traceback.print_exc()
        result.problems.append(f"{fault.name}: {error!r}")
        return result
    found = result.figures()
    if found["failed"] != len(fault.poison):
        result.problems.append(f"{fault.name}: {found['failed']} requests failed; {len(fault.poison)} should have")
    if fault.shows is not None and not found[fault.shows]:
        result.problems.append(f"{fault.name}: {fault.shows} is 0, so the fault had no effect")
    return result


def _run(system: System, fault: Fault, workload: Workload, result: PhaseResult) -> None:
    stale_before = system.counter("stale_commits")
    fault.set_up(system)
    with ThreadPoolExecutor(1) as pool:
        injection = pool.submit(fault.inject, system)
        ids = submit_all(system, _prompts(fault, workload, injection), workload.max_tokens)
        outcome_of(injection, f"the fault {fault.name} is over", INJECT_S)
    fault.clean_up(system)
    wait_for_all(system, ids, workload.settle_s)
    deaths = system.worker_deaths() if workload.counts_recoveries else {}
    result.outcomes = [read_outcome(system, request_id, deaths) for request_id in ids]
    system.wait_until_ready()
    result.stale_refused = system.counter("stale_commits") - stale_before


def _prompts(fault: Fault, workload: Workload, injection: "Future[None]") -> Iterator[str]:
    """Prompts of which fake engines obey the first word alone; every second one is escalated."""
    place, deadline = 0, time.monotonic() + INJECT_S
    while place < workload.num_requests or (
        workload.until_over and not injection.done() and time.monotonic() < deadline
    ):
        command = fault.poison[place] if place < len(fault.poison) else "unsure" if place % 2 else ""
        yield f"{command} Tell me something about the number {place}, {uuid.uuid4().hex[:8]}.".lstrip()
        place += 1
