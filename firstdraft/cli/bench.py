"""`firstdraft bench`: a load test of the running system."""

import itertools
import time
from pathlib import Path

import click
from rich.progress import Progress
from rich.table import Table

from firstdraft.cli.demo import PROMPTS
from firstdraft.cli.failures import expected_failures
from firstdraft.cli.measures import acceptance_rate, edge_share
from firstdraft.cli.options import client_for, gateway_options, print_json
from firstdraft.cli.prompt_files import read_prompts
from firstdraft.cli.terminal import terminal
from firstdraft.client.answers import Inference
from firstdraft.client.statistics import ClientStatistics


@click.command()
@click.argument("prompts", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--requests", "num_requests", default=20, show_default=True, type=click.IntRange(1), help="How many.")
@click.option("--concurrency", default=4, show_default=True, type=click.IntRange(1), help="Requests in flight.")
@click.option("--max-tokens", default=64, show_default=True, type=click.IntRange(1), help="The longest answer.")
@click.option("--policy", default=None, help="Which tiers answer and how.")
@gateway_options
def bench(
    prompts: Path | None,
    num_requests: int,
    concurrency: int,
    max_tokens: int,
    policy: str | None,
    url: str | None,
    as_json: bool,
) -> None:
    """Send requests, PROMPTS (a JSONL file of request bodies) over and over, and print rates and latencies.

    \b
    firstdraft bench --requests 100 --concurrency 16
    firstdraft bench prompts.jsonl --policy cloud_only --json
    """
    with expected_failures():
        texts = list(PROMPTS) if prompts is None else [_text(body) for body in read_prompts(prompts)]
        with client_for(url) as client, Progress(console=terminal(stderr=True), disable=as_json) as progress:
            load = itertools.islice(itertools.cycle(texts), num_requests)
            began = time.perf_counter()
            answers = list(
                progress.track(
                    client.infer_many(load, concurrency=concurrency, max_tokens=max_tokens, policy=policy),
                    total=num_requests,
                    description="requests",
                )
            )
            elapsed_s = time.perf_counter() - began
            figures = _figures(answers, client.stats(), elapsed_s)
    if as_json:
        print_json({"bench": "load", "concurrency": concurrency, "figures": figures})
        return
    table = Table("what", "figure", show_header=False)
    for name, figure in figures.items():
        table.add_row(name.replace("_", " "), "" if figure is None else f"{figure:.2f}")
    terminal().print(table)


def _text(body: dict[str, object]) -> str:
    """A request's prompt, or its conversation's last message."""
    if isinstance(prompt := body.get("prompt"), str):
        return prompt
    messages = body["messages"]
    assert isinstance(messages, list)
    return str(messages[-1]["content"])


def _figures(answers: list[Inference], stats: ClientStatistics, elapsed_s: float) -> dict[str, float | None]:
    return {
        "requests_per_s": len(answers) / elapsed_s,
        "output_tokens_per_s": sum(answer.result.usage.completion_tokens for answer in answers) / elapsed_s,
        "mean_latency_ms": stats.mean_latency_ms,
        "p50_latency_ms": stats.p50_latency_ms,
        "p90_latency_ms": stats.p90_latency_ms,
        "p99_latency_ms": stats.p99_latency_ms,
        "edge_share": edge_share(answers),
        "acceptance_rate": acceptance_rate(answers),
        "retries": float(stats.retries),
    }
