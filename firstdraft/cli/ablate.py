"""`firstdraft ablate`: configurations, compared."""

from pathlib import Path

import click
from rich.table import Table

from firstdraft.cli.ablation import AblationFailed, Row, ablate, as_json
from firstdraft.cli.failures import expected_failures
from firstdraft.cli.options import client_for
from firstdraft.cli.prompt_files import read_prompts
from firstdraft.cli.server import checked_settings
from firstdraft.cli.terminal import terminal


@click.command(name="ablate")
@click.argument("prompts", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--url", default=None, help="The gateway; the configured one if not given.")
@click.option("--concurrency", default=4, show_default=True, type=click.IntRange(1), help="Requests in flight.")
@click.option("--only", multiple=True, help="An ablation's name; may be given more than once.")
def ablate_command(prompts: Path, url: str | None, concurrency: int, only: tuple[str, ...]) -> None:
    """Compare configurations on PROMPTS, a JSONL file of request bodies, against the running system.

    Prints a table, and as the last line one JSON document.
    """
    ablations = checked_settings().experiments.ablations
    if unknown := set(only) - {ablation.name for ablation in ablations}:
        known = ", ".join(ablation.name for ablation in ablations)
        raise click.BadParameter(f"{', '.join(sorted(unknown))} (there are {known})", param_hint="--only")
    chosen = [ablation for ablation in ablations if not only or ablation.name in only]
    with expected_failures(AblationFailed), client_for(url) as client:
        rows = ablate(client, read_prompts(prompts), chosen, concurrency, terminal(stderr=True).print)
    terminal(width=120).print(_table(rows))
    click.echo(as_json(rows))


def _table(rows: list[Row]) -> Table:
    table = Table(
        "ablation",
        "mean ms",
        "p95 ms",
        "requests/s",
        "edge share",
        "acceptance",
        "cloud tokens",
        "cached edge",
        "cached cloud",
        caption="tokens are per request; after one warm-up pass over the same prompts",
    )
    for row in rows:
        table.add_row(
            row.name,
            f"{row.mean_latency_ms:.0f}",
            f"{row.p95_latency_ms:.0f}",
            f"{row.requests_per_s:.2f}",
            f"{row.edge_share:.0%}",
            "" if row.acceptance_rate is None else f"{row.acceptance_rate:.0%}",
            f"{row.cloud_tokens_per_request:.1f}",
            f"{row.edge_cached_tokens_per_request:.1f}",
            f"{row.cloud_cached_tokens_per_request:.1f}",
        )
    return table
