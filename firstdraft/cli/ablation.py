"""`firstdraft ablate`: the same prompts through several configurations, against the running system.

The configurations are `experiments.ablations` of the settings. One untimed pass comes first, so that every
configuration with caches finds them equally warm.
"""

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from config.settings import AblationSettings
from firstdraft.cli.failures import expected_failures
from firstdraft.cli.measures import acceptance_rate, edge_share
from firstdraft.cli.options import client_for
from firstdraft.cli.prompt_files import read_prompts
from firstdraft.cli.server import checked_settings
from firstdraft.cli.terminal import terminal
from firstdraft.client.answers import Inference
from firstdraft.client.statistics import percentile
from firstdraft.client.sync import Client

#: The settings that a request can override, and where in its body. Any other needs a restart.
OVERRIDES = {
    "requests.policy": ("policy",),
    "edge.confidence.strategy": ("confidence", "strategy"),
    "edge.confidence.threshold": ("confidence", "threshold"),
    "edge.confidence.weights": ("confidence", "weights"),
    "edge.confidence.pooling": ("confidence", "pooling"),
    "edge.confidence.quantile": ("confidence", "quantile"),
    "cloud.draft_verifier.mode": ("acceptance", "mode"),
    "cloud.draft_verifier.acceptance_threshold": ("acceptance", "threshold"),
}
#: The policy of the untimed first pass: it uses both tiers and both caches.
WARM_UP = {"policy": "no_confidence"}


class AblationFailed(Exception):
    """The comparison cannot be made; the message says why."""


@dataclass(frozen=True)
class Row:
    """One configuration's figures over all prompts."""

    name: str
    description: str
    requests: int
    mean_latency_ms: float
    p95_latency_ms: float
    requests_per_s: float
    #: Share answered at the edge.
    edge_share: float
    #: Accepted over drafted tokens of verified drafts; None if there was none.
    acceptance_rate: float | None
    cloud_tokens_per_request: float
    #: Prompt tokens found in each tier's KV cache, per request; 0 with caches off.
    edge_cached_tokens_per_request: float
    cloud_cached_tokens_per_request: float


def body_for(body: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the request with an ablation's overrides. Raises `AblationFailed` for one that needs a restart."""
    changed = dict(body)
    for setting, value in overrides.items():
        if setting not in OVERRIDES:
            known = ", ".join(sorted(OVERRIDES))
            raise AblationFailed(f"config_overrides: {setting!r} needs a restart; an ablation may override {known}")
        *parents, last = OVERRIDES[setting]
        target = changed
        for parent in parents:
            target[parent] = dict(target.get(parent) or {})
            target = target[parent]
        target[last] = value
    return changed


def ablate(
    client: Client,
    bodies: Sequence[Mapping[str, Any]],
    ablations: Iterable[AblationSettings],
    concurrency: int,
    say: Callable[[str], None],
) -> list[Row]:
    """Run every ablation in turn. Blocks; raises `AblationFailed` or `FirstdraftError`."""
    planned = [(ablation, [body_for(body, ablation.config_overrides) for body in bodies]) for ablation in ablations]
    rows = []
    say("warming up")
    _infer_all(client, [{**body, **WARM_UP} for body in bodies], concurrency)
    for ablation, requests in planned:
        say(f"running {ablation.name}")
        began = time.perf_counter()
        answers = _infer_all(client, requests, concurrency)
        rows.append(summary(ablation, answers, time.perf_counter() - began))
    return rows


def summary(ablation: AblationSettings, answers: Sequence[Inference], elapsed_s: float) -> Row:
    """One row of the table."""
    count = len(answers)
    latencies = sorted(answer.latency_ms for answer in answers)
    p95_latency_ms = percentile(latencies, 0.95)
    assert p95_latency_ms is not None
    usages = [answer.result.usage for answer in answers]
    return Row(
        name=ablation.name,
        description=ablation.description,
        requests=count,
        mean_latency_ms=sum(latencies) / count,
        p95_latency_ms=p95_latency_ms,
        requests_per_s=count / elapsed_s,
        edge_share=edge_share(answers),
        acceptance_rate=acceptance_rate(answers),
        cloud_tokens_per_request=sum(usage.cloud_completion_tokens for usage in usages) / count,
        edge_cached_tokens_per_request=sum(usage.edge_cached_tokens for usage in usages) / count,
        cloud_cached_tokens_per_request=sum(usage.cloud_cached_tokens for usage in usages) / count,
    )


def as_json(rows: Sequence[Row]) -> str:
    """All rows as one JSON document on one line."""
    return json.dumps({"ablation": {row.name: asdict(row) for row in rows}})


def _infer_all(client: Client, bodies: Sequence[Mapping[str, Any]], concurrency: int) -> list[Inference]:
    with ThreadPoolExecutor(concurrency) as pool:
        return list(pool.map(lambda body: _infer(client, body), bodies))


def _infer(client: Client, body: Mapping[str, Any]) -> Inference:
    options = dict(body)
    prompt = options.pop("prompt", None)
    messages = options.pop("messages", None)
    return client.infer(messages if prompt is None else prompt, **options)


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
    columns = {
        "ablation": "{0.name}",
        "mean ms": "{0.mean_latency_ms:.0f}",
        "p95 ms": "{0.p95_latency_ms:.0f}",
        "requests/s": "{0.requests_per_s:.2f}",
        "edge share": "{0.edge_share:.0%}",
        "acceptance": "{0.acceptance_rate:.0%}",
        "cloud tokens": "{0.cloud_tokens_per_request:.1f}",
        "cached edge": "{0.edge_cached_tokens_per_request:.1f}",
        "cached cloud": "{0.cloud_cached_tokens_per_request:.1f}",
    }
    table = Table(*columns, caption="tokens are per request; after one warm-up pass over the same prompts")
    for row in rows:
        verified = row.acceptance_rate is not None
        table.add_row(*(form.format(row) if verified or name != "acceptance" else "" for name, form in columns.items()))
    return table
