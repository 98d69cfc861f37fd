"""`firstdraft models`: what can be prepared on this machine."""

import json

import click
from rich.table import Table

from firstdraft.cli.server import checked_settings, server_failures
from firstdraft.cli.terminal import terminal
from firstdraft.local.model_store import PreparedModel, list_models, prepare_cloud_model, prepare_edge_model


@click.group()
def models() -> None:
    """The models that can be prepared on this machine."""


@models.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def list_command(*, as_json: bool) -> None:
    """List them, with where they are."""
    settings = checked_settings()
    with server_failures():
        found = list_models(settings)
    if as_json:
        click.echo(json.dumps([_plain(model) for model in found]))
        return
    table = Table("tier", "name", "prepared", "MB", "path")
    for model in found:
        size = f"{model.size_bytes / 1e6:.0f}" if model.prepared else ""
        table.add_row(model.tier, model.name, "yes" if model.prepared else "no", size, str(model.path))
    terminal().print(table)


@models.command()
@click.argument("names", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def prepare(names: tuple[str, ...], *, as_json: bool) -> None:
    """Prepare cloud models by NAME (demo, demo-6x, …), and the edge's; demo's for both tiers if none is named."""
    settings = checked_settings()
    with server_failures():
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
