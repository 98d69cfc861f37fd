"""`firstdraft ablate`: ways of running, compared."""

from pathlib import Path

import click
from rich.table import Table

from firstdraft.cli.ablation import Row, ablate, as_json, read_prompts
from firstdraft.cli.failures import checked_settings, expected_failures
from firstdraft.cli.options import gateway_url
from firstdraft.cli.terminal import terminal


@click.command(name="ablate")
@click.argument("prompts", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--url", default=None, help="The gateway; the configured one if not given.")
@click.option("--concurrency", default=4, show_default=True, type=click.IntRange(1), help="Requests in flight.")
@click.option("--only", multiple=True, help="An ablation's name; may be given more than once.")
def ablate_command(prompts: Path, url: str | None, concurrency: int, only: tuple[str, ...]) -> None:
    """Compare ways of running on PROMPTS, a JSONL file of request bodies, against the running system.

    Prints a table, and as the last line one JSON document.
    """
    settings = checked_settings()
    ways = settings.experiments.ablations
    if unknown := set(only) - {way.name for way in ways}:
        known = ", ".join(way.name for way in ways)
        raise click.BadParameter(f"{', '.join(sorted(unknown))} (there are {known})", param_hint="--only")
    base_url = gateway_url(url)
    progress = terminal(stderr=True)
    with expected_failures():
        chosen = [way for way in ways if not only or way.name in only]
        rows = ablate(base_url, read_prompts(prompts), chosen, concurrency, progress.print)
    terminal(width=120).print(_ablation_table(rows))
    click.echo(as_json(rows))


def _ablation_table(rows: list[Row]) -> Table:
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
