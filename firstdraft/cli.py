"""The command line. Each command says what went wrong in one line; a traceback is a bug."""

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import click
from rich.console import Console
from rich.table import Table

from config.settings import InvalidSettings, Settings, read_settings, state_folder
from firstdraft.ablation import AblationFailed, Row, ablate, as_json, read_prompts
from firstdraft.demo import DemoFailed, run_demo
from firstdraft.embedded import EmbeddedServerError
from firstdraft.model_store import (
    ModelStoreError,
    PreparedModel,
    list_models,
    prepare_cloud_model,
    prepare_edge_model,
)
from firstdraft.running import SystemNotRunning, running_system

#: Lines of the processes' output that a failed demo shows.
TAIL_LINES = 30

procfile_option = click.option(
    "--procfile", type=click.Path(path_type=Path), default=Path("Procfile"), show_default=True, help="What to run."
)


@contextmanager
def expected_failures() -> Iterator[None]:
    """Turn the failures that a user can mend into one line and exit status 1."""
    try:
        yield
    except (
        InvalidSettings,
        ModelStoreError,
        EmbeddedServerError,
        SystemNotRunning,
        DemoFailed,
        AblationFailed,
        OSError,  # a folder that cannot be written, a full disk: the message names it
    ) as failure:
        raise click.ClickException(str(failure)) from failure


def _settings() -> Settings:
    with expected_failures():
        return read_settings()


def _stop_on_signals() -> None:
    """SIGTERM stops as Ctrl-C does, and Ctrl-C stops also where a shell has us started in the background.

    Only the first counts: a second must not keep the stop, which is bounded, from ending every process.
    """

    def interrupt(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001 - a signal handler
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGINT, interrupt)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="firstdraft")
def main() -> None:
    """A small model drafts every answer; a large model verifies the drafts that should not be trusted."""


@main.command()
@procfile_option
def up(procfile: Path) -> None:
    """Run everything on this machine until Ctrl-C."""
    _stop_on_signals()
    settings = _settings()
    console = Console(highlight=False)
    try:
        with expected_failures(), running_system(settings, procfile, console.print) as system:
            console.print("Ctrl-C stops it.")
            system.wait()
    except KeyboardInterrupt:
        console.print("stopped")


@main.command()
@procfile_option
def demo(procfile: Path) -> None:
    """Run everything, answer a handful of prompts, show what became of each, stop."""
    _stop_on_signals()
    settings = _settings()
    console = Console(highlight=False)
    log = state_folder() / "demo.log"
    with expected_failures():
        log.parent.mkdir(parents=True, exist_ok=True)
        output = log.open("wb")
    try:
        with output, expected_failures():
            console.print(f"what the processes print goes to {log}")
            with running_system(settings, procfile, console.print, output) as system:
                run_demo(system.base_url, console)
    except KeyboardInterrupt:
        sys.exit(130)
    except click.ClickException:
        tail = log.read_text(errors="replace").splitlines()[-TAIL_LINES:]
        Console(stderr=True, highlight=False, markup=False).print("\n".join(tail))
        raise
    console.print("stopped")


@main.command(name="ablate")
@click.argument("prompts", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--url", default=None, help="The gateway; the configured one if not given.")
@click.option("--concurrency", default=4, show_default=True, type=click.IntRange(1), help="Requests in flight.")
@click.option("--only", multiple=True, help="An ablation's name; may be given more than once.")
def ablate_command(prompts: Path, url: str | None, concurrency: int, only: tuple[str, ...]) -> None:
    """Compare ways of running on PROMPTS, a JSONL file of request bodies, against the running system.

    Prints a table, and as the last line one JSON document.
    """
    settings = _settings()
    ways = settings.experiments.ablations
    if unknown := set(only) - {way.name for way in ways}:
        known = ", ".join(way.name for way in ways)
        raise click.BadParameter(f"{', '.join(sorted(unknown))} (there are {known})", param_hint="--only")
    base_url = url or f"http://{settings.gateway.host}:{settings.gateway.port}"
    progress = Console(stderr=True, highlight=False)
    with expected_failures():
        chosen = [way for way in ways if not only or way.name in only]
        rows = ablate(base_url, read_prompts(prompts), chosen, concurrency, progress.print)
    Console(width=120).print(_ablation_table(rows))
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


@main.group()
def models() -> None:
    """The models that can be prepared on this machine."""


@models.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def list_command(*, as_json: bool) -> None:
    """List them, with where they are."""
    settings = _settings()
    with expected_failures():
        found = list_models(settings)
    if as_json:
        click.echo(json.dumps([_plain(model) for model in found]))
        return
    table = Table("tier", "name", "prepared", "MB", "path")
    for model in found:
        size = f"{model.size_bytes / 1e6:.0f}" if model.prepared else ""
        table.add_row(model.tier, model.name, "yes" if model.prepared else "no", size, str(model.path))
    Console().print(table)


@models.command()
@click.argument("names", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def prepare(names: tuple[str, ...], *, as_json: bool) -> None:
    """Prepare cloud models by NAME (demo, demo-6x, …), and the edge's; demo's for both tiers if none is named."""
    settings = _settings()
    with expected_failures():
        paths = [prepare_edge_model(settings)]
        paths += [prepare_cloud_model(settings, name) for name in names or ("demo",)]
    if as_json:
        click.echo(json.dumps([str(path) for path in paths]))
    else:
        for path in paths:
            click.echo(path)


def _plain(model: PreparedModel) -> dict[str, str | bool | int]:
    return {
        "tier": model.tier,
        "name": model.name,
        "prepared": model.prepared,
        "size_bytes": model.size_bytes,
        "path": str(model.path),
    }


if __name__ == "__main__":
    main()
