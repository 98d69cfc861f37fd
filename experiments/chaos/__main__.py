"""`make chaos`: faults of every kind while requests come in, and what became of each request that was accepted.

    python -m experiments.chaos [--requests 2000] [--fault NAME] [--engines]

Everything is a real process: Redis, a gateway, three workers of each tier, around stand-in engines that obey the
engines' own protocol, for volume; `--engines` adds phases on llama.cpp and vLLM. A request counts as accepted when the
gateway has answered 202; submissions are repeated with their idempotency key until it does. `recovery` is the time from
a worker's death to the next attempt at what it had in hand, by Redis's clock.
"""

import argparse
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from experiments.chaos.engines import engine_phases
from experiments.chaos.faults import FAULTS
from experiments.chaos.ledger import Figures, broken_promises, figures, num_records
from experiments.chaos.phases import Outcome, run_phase
from experiments.chaos.system import System, running
from firstdraft.cli.terminal import terminal

#: Workers of each tier.
NUM_WORKERS = 3


def main() -> int:
    """Run the phases, print a table and one JSON document; answers 1 if a promise was not kept."""
    arguments = _arguments()
    console = terminal()
    outcomes: list[Outcome] = []
    problems: list[str] = []
    try:
        with tempfile.TemporaryDirectory(prefix="firstdraft-chaos-") as folder, running(Path(folder)) as system:
            for outcome in _phases(system, arguments):
                outcomes.append(outcome)
                console.print(f"{outcome.name}: {outcome.figures()}", soft_wrap=True)
            if (unknown := num_records(system.redis) - sum(len(outcome.stories) for outcome in outcomes)) > 0:
                problems.append(f"{unknown} requests were accepted that no client knows of")
    except Exception as error:  # noqa: BLE001 - what was found until then is still told
        traceback.print_exc()
        problems.append(repr(error))
    total = figures(
        [story for outcome in outcomes for story in outcome.stories],
        sum(outcome.stale_refused for outcome in outcomes),
        [stray for outcome in outcomes for stray in outcome.strays_s],
    )
    problems += [problem for outcome in outcomes for problem in outcome.problems] + broken_promises(total)
    by_fault = {outcome.name: outcome.figures() for outcome in outcomes}
    _print(console, by_fault, total)
    for problem in problems:
        console.print(problem, style="red", soft_wrap=True)
    machine = {"cores": os.cpu_count(), "workers": 2 * NUM_WORKERS}
    document = {"bench": "chaos", "machine": machine, "figures": total | {"faults": by_fault}, "problems": problems}
    print(json.dumps(document))
    return 1 if problems else 0


def _phases(system: System, arguments: argparse.Namespace) -> Iterator[Outcome]:
    faults = [fault for fault in FAULTS if arguments.fault in (None, fault.name)]
    for place in range(NUM_WORKERS):
        for tier in ("edge", "cloud"):
            system.add_worker(f"{tier}-{place}", tier)
    system.wait_until_ready()
    for fault in faults:
        yield run_phase(system, fault, max(1, -(-arguments.requests // len(faults))))
    if arguments.engines:
        for name in [member.name for member in system.workers()]:
            system.remove(name)
        yield from engine_phases(system)


def _print(console: Console, by_fault: dict[str, Figures], total: Figures) -> None:
    table = Table("fault", *total)
    for name, row in [*by_fault.items(), ("all", total)]:
        table.add_row(name, *("" if value is None else f"{value:g}" for value in row.values()))
    console.print(table)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000, help="at least, of all phases on stand-ins together")
    parser.add_argument("--fault", choices=[fault.name for fault in FAULTS], help="one phase alone")
    parser.add_argument("--engines", action="store_true", help="add phases on real engines (minutes)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
