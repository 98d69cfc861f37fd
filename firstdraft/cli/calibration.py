"""`firstdraft calibration`: which calibrations are active. Works on Redis itself, as `firstdraft keys` does."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from pydantic import ValidationError
from rich.table import Table

from broker.calibrations import CalibrationStore, UnknownCalibration
from firstdraft.cli.failures import expected_failures
from firstdraft.cli.server import server_failures
from firstdraft.cli.terminal import terminal
from firstdraft.local.calibrating import calibration_store, described, read_calibration

json_option = click.option("--json", "as_json", is_flag=True, help="For machines.")


@click.group()
def calibration() -> None:
    """The calibrations of confidence that are active, and earlier ones.

    \b
    firstdraft calibration show
    firstdraft calibration rollback
    """


@calibration.command()
@json_option
def show(*, as_json: bool) -> None:
    """Show the active calibrations, and what audits have found since they became active."""
    with server_failures(), calibration_store() as store:
        found = [(each, store.drift(each.scope)) for each in store.active()]
    if as_json:
        documents = [
            {
                "calibration": each.model_dump(mode="json", exclude={"labels"}),
                "drift": None if drift is None else drift.model_dump(mode="json"),
            }
            for each, drift in found
        ]
        click.echo(json.dumps(documents))
        return
    if not found:
        click.echo("uncalibrated: `firstdraft calibrate` makes a calibration")
    for each, drift in found:
        scope = each.scope
        kind = "" if scope.traffic_class is None else f", class {scope.traffic_class}"
        click.echo(f"{each.version}: {scope.edge_model} before {scope.cloud_model}, {scope.strategy}{kind}")
        click.echo(f"  {described(each)}")
        if drift is not None:
            click.echo(
                f"  since then {drift.answers} drafts, {drift.kept} kept, {drift.audits} audited, {drift.worse} worse"
            )
            if drift.broken_at_s is not None:
                click.echo(f"  the promise was found broken at {_time(drift.broken_at_s)}; no draft is kept")


@calibration.command()
@click.option("--most", default=20, show_default=True, type=click.IntRange(1, 200), help="Entries.")
@json_option
def history(most: int, *, as_json: bool) -> None:
    """Show what became active when, the latest first."""
    with server_failures(), calibration_store() as store:
        found = store.history(most)
    if as_json:
        click.echo(json.dumps([entry.model_dump(mode="json") for entry in found]))
        return
    table = Table("version", "when", "edge", "cloud", "class", "threshold", "labels", "reason")
    for entry in found:
        threshold = "keeps nothing" if entry.threshold is None else f"{entry.threshold:.4f}"
        scope = entry.scope
        cells = (str(entry.version), _time(entry.at_s), scope.edge_model, scope.cloud_model, scope.traffic_class or "")
        table.add_row(*cells, threshold, str(entry.labels), entry.reason)
    terminal().print(table)


@calibration.command()
@click.option("--version", "of", type=click.IntRange(1), default=None, help="This one, instead of the one before.")
@click.option("--to", type=click.IntRange(1), default=None, help="To this version.")
def rollback(of: int | None, to: int | None) -> None:
    """Make an earlier calibration active again. --version: instead of which active one, if there are several."""
    with server_failures(), expected_failures(UnknownCalibration), calibration_store() as store:
        active = _one(store, of)
        after = store.rollback(active.scope, to)
    click.echo(f"calibration {after.version} is active")


@calibration.command()
@click.argument("version", type=click.IntRange(1))
def export(version: int) -> None:
    """Print a calibration as JSON, labels included."""
    with server_failures(), calibration_store() as store:
        found = store.read(version)
    if found is None:
        raise click.ClickException(f"there is no calibration {version}: firstdraft calibration history")
    click.echo(found.model_dump_json(indent=1))


@calibration.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def activate(file: Path) -> None:
    """Make the calibration in FILE active, as `firstdraft calibrate --output` or `export` wrote it."""
    try:
        document = read_calibration(file)
    except (ValidationError, UnicodeDecodeError) as error:
        raise click.ClickException(f"{file} is no calibration: {error}") from error
    with server_failures(), calibration_store() as store:
        click.echo(f"calibration {store.activate(document)} is active")


def _one(store: CalibrationStore, version: int | None) -> Any:
    """The active calibration of this version, or the only one."""
    active = [each for each in store.active() if version in {None, each.version}]
    if len(active) != 1:
        there = ", ".join(str(each.version) for each in store.active()) or "none"
        raise UnknownCalibration(f"--version must name one active calibration; active: {there}")
    return active[0]


def _time(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M:%S")
