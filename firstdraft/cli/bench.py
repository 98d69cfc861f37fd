"""`firstdraft bench`: load on the running system, and what it makes of it."""

import itertools
import time
from pathlib import Path

import click
from rich.progress import Progress
from rich.table import Table

from firstdraft.cli.ablation import read_prompts
from firstdraft.cli.failures import expected_failures
from firstdraft.cli.options import client_for, gateway_options, print_json
from firstdraft.cli.terminal import terminal
from firstdraft.client.answers import Inference
from firstdraft.client.statistics import ClientStatistics
from firstdraft.local.demo import PROMPTS
from schemas.policy import Tier


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
    """A request's prompt; of a conversation the last message."""
    if isinstance(prompt := body.get("prompt"), str):
        return prompt
    messages = body["messages"]
    assert isinstance(messages, list)
    return str(messages[-1]["content"])


def _figures(answers: list[Inference], seen: ClientStatistics, elapsed_s: float) -> dict[str, float | None]:
    drafts = [one.result.draft for one in answers if one.result.draft is not None and one.result.draft.verified]
    drafted = sum(draft.drafted_tokens for draft in drafts)
    return {
        "requests_per_s": len(answers) / elapsed_s,
        "output_tokens_per_s": sum(one.result.usage.completion_tokens for one in answers) / elapsed_s,
        "mean_latency_ms": seen.mean_latency_ms,
        "p50_latency_ms": seen.p50_latency_ms,
        "p90_latency_ms": seen.p90_latency_ms,
        "p99_latency_ms": seen.p99_latency_ms,
        "edge_share": sum(one.tier == Tier.EDGE for one in answers) / len(answers),
        "acceptance_rate": sum(draft.accepted_tokens for draft in drafts) / drafted if drafted else None,
        "retries": float(seen.retries),
    }
