"""The edge engine against its alternatives: one GGUF file, the same prompts and threads, sides in turn.

    python -m experiments.bench_edge [--rounds 3]        (or make bench-edge)

Figures are medians over rounds. Caveats: other programs on the machine slow all sides, so only ratios count; the sides
count a request's end-of-text token differently, which is one token in about sixty.
"""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from config.settings import read_settings
from experiments import edge_latency
from experiments.harness.report import parser, print_document, print_table
from firstdraft.cli.prompt_files import read_prompts
from firstdraft.cli.terminal import terminal
from workers.runtime.model_paths import edge_model_path

#: Seconds that one side may take in one round. The logprobs side needs hundreds of milliseconds per token.
SIDE_S = 1800.0
#: The sides with their requests in flight, in the order in which they take turns.
SIDES = (
    ("ours", 8),
    ("llama_cpp_python", 8),
    ("llama_server", 8),
    ("llama_cpp_python_logprobs", 8),
    ("ours", 1),
    ("create_completion", 1),
)


def main(num_rounds: int) -> None:
    """Run everything, print a table and one JSON document."""
    model = edge_model_path(read_settings())
    threads = os.cpu_count() or 1
    runs: dict[tuple[str, int], list[dict[str, Any]]] = {side: [] for side in SIDES}
    latency: dict[str, list[float]] = {}
    for number in range(num_rounds):
        terminal(stderr=True).print(f"round {number + 1} of {num_rounds}")
        for side in SIDES:
            # Only the memory of the logprobs side is used, and it takes hundreds of milliseconds per token.
            if side[0] != "llama_cpp_python_logprobs" or number == 0:
                runs[side].append(_run_side(*side, model, threads))
        for name, value in _latency_round(model, threads).items():
            latency.setdefault(name, []).append(value)
    speed = {side: statistics.median(run["tokens_per_s"] for run in done) for side, done in runs.items()}
    memory = {side: max(run["peak_mb"] for run in done) for side, done in runs.items()}
    rows = [
        (*side, f"{speed[side]:.1f}", f"{memory[side]:.0f}", str(done[0]["build"])[:60]) for side, done in runs.items()
    ]
    print_table(("side", "in flight", "tokens/s", "peak MB", "build"), rows)
    medians = {name: statistics.median(values) for name, values in latency.items()}
    figures = {
        "vs_llama_cpp_python_8": speed["ours", 8] / speed["llama_cpp_python", 8],
        "vs_llama_server_8": speed["ours", 8] / speed["llama_server", 8],
        "vs_create_completion_1": speed["ours", 1] / speed["create_completion", 1],
        "ttft_shared_prefix": medians["shared_off_s"] / medians["shared_on_s"],
        "ttft_conversation": medians["conversation_off_s"] / medians["conversation_on_s"],
        "rss_vs_llama_cpp_python": memory["ours", 8] / memory["llama_cpp_python_logprobs", 8],
        "stall_p99_ratio": medians["p99_gap_busy_s"] / medians["p99_gap_calm_s"],
        "figures_ms_at_152k": edge_latency.figures_ms_per_token(),
        **edge_latency.early_escalation_saving(model, threads, _prompts()),
    }
    print_table(("figure", "value"), [(name, f"{value:.3f}") for name, value in {**figures, **medians}.items()])
    print_document("edge", figures, model=model.name, rounds=num_rounds)


def _run_side(side: str, in_flight: int, model: Path, threads: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "experiments.edge_sides", side, str(model), str(in_flight), str(threads)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False, timeout=SIDE_S)  # noqa: S603
    answers = [line for line in done.stdout.splitlines() if line.startswith('{"tokens"')]
    if not answers:
        sys.exit(f"{side} gave no answer (pip install 'firstdraft[bench]'?):\n{done.stderr[-2000:]}")
    answer: dict[str, Any] = json.loads(answers[-1])
    return answer


def _latency_round(model: Path, threads: int) -> dict[str, float]:
    return {
        "shared_off_s": edge_latency.ttft_shared_prefix(model, threads, use_cache=False),
        "shared_on_s": edge_latency.ttft_shared_prefix(model, threads, use_cache=True),
        "conversation_off_s": edge_latency.ttft_conversation(model, threads, use_cache=False),
        "conversation_on_s": edge_latency.ttft_conversation(model, threads, use_cache=True),
        "p99_gap_calm_s": edge_latency.p99_gap_s(model, threads, long_prompt=False),
        "p99_gap_busy_s": edge_latency.p99_gap_s(model, threads, long_prompt=True),
    }


def _prompts() -> list[str]:
    bodies = read_prompts(Path(__file__).with_name("prompts.jsonl"))
    return [body["prompt"] for body in bodies if "prompt" in body]


if __name__ == "__main__":
    arguments = parser(__doc__)
    arguments.add_argument("--rounds", type=int, default=3)
    main(arguments.parse_args().rounds)
