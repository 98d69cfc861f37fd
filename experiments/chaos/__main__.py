"""`make chaos`: faults of every kind while requests are submitted, and the outcome of each accepted request.

    python -m experiments.chaos [--requests 2000] [--fault NAME] [--engines]

Everything is a real process: Redis, a gateway, three workers of each tier. The workers have fake engines that obey the
real engines' protocol, for volume; `--engines` adds phases on llama.cpp and vLLM. A request counts as accepted when the
gateway has answered 202; submissions are repeated with their idempotency key until it does. `recovery` is the time from
a worker's death to the next attempt at each request that it held, by Redis's clock.
"""

import argparse
import sys
import traceback
from collections.abc import Iterator

from experiments.chaos.faults import ENGINE_FAULTS, FAULTS
from experiments.chaos.outcomes import broken_promises, figures, num_records
from experiments.chaos.phases import PhaseResult, Workload, run_phase
from experiments.harness.report import parser, print_document, print_table
from experiments.harness.system import System, running_system
from firstdraft.cli.terminal import terminal
from schemas.policy import Tier

#: Workers of each tier.
NUM_WORKERS = 3
#: What the phases on real engines submit. An engine that was killed takes a minute to load again.
ENGINE_WORKLOAD = Workload(12, max_tokens=48, until_over=False, counts_recoveries=False, settle_s=300.0)


def main() -> int:
    """Run the phases, print a table and one JSON document; the exit status is 1 if a promise was not kept."""
    options = _options()
    results: list[PhaseResult] = []
    problems: list[str] = []
    try:
        with running_system() as system:
            for result in _phases(system, options):
                results.append(result)
                terminal().print(f"{result.name}: {result.figures()}", soft_wrap=True)
            if (unknown := num_records(system) - sum(len(result.outcomes) for result in results)) > 0:
                problems.append(f"{unknown} requests were accepted that no client knows of")
    except Exception as error:  # noqa: BLE001 - what was found until then is still reported
        traceback.print_exc()
        problems.append(repr(error))
    total = figures(
        [outcome for result in results for outcome in result.outcomes],
        sum(result.stale_refused for result in results),
    )
    problems += [problem for result in results for problem in result.problems] + broken_promises(total)
    by_fault = {result.name: result.figures() for result in results}
    rows = [(name, *row.values()) for name, row in {**by_fault, "all": total}.items()]
    print_table(["fault", *total], rows)
    return print_document("chaos", total | {"faults": by_fault}, problems, workers=2 * NUM_WORKERS)


def _phases(system: System, options: argparse.Namespace) -> Iterator[PhaseResult]:
    faults = [fault for fault in FAULTS if options.fault in (None, fault.name)]
    for number in range(NUM_WORKERS):
        for tier in Tier:
            system.add_fake_worker(f"{tier}-{number}", tier)
    system.wait_until_ready()
    for fault in faults:
        yield run_phase(system, fault, Workload(max(1, -(-options.requests // len(faults)))))
    if options.engines:
        for worker in system.workers():
            system.remove(worker.name)
        for tier in Tier:
            system.add_worker(f"{tier}-engine", tier)
        system.wait_until_ready()
        for fault in ENGINE_FAULTS:
            yield run_phase(system, fault, ENGINE_WORKLOAD)


def _options() -> argparse.Namespace:
    arguments = parser(__doc__)
    arguments.add_argument("--requests", type=int, default=2000, help="at least, of all phases on fake engines")
    arguments.add_argument("--fault", choices=[fault.name for fault in FAULTS], help="this phase alone")
    arguments.add_argument("--engines", action="store_true", help="add phases on real engines (minutes)")
    return arguments.parse_args()


if __name__ == "__main__":
    sys.exit(main())
