"""`firstdraft keys`: API keys. Works on Redis itself, so whoever can reach that needs no key to make one."""

import json
from datetime import UTC, datetime

import click
from pydantic import ValidationError
from rich.table import Table

from config.settings import read_secret
from firstdraft.cli.server import checked_settings, server_failures
from firstdraft.cli.terminal import WORDS, terminal
from firstdraft.local.api_keys import api_keys, key_owner
from gateway.webhooks.delivery import owners_secret
from schemas.owners import Scope


@click.group()
def keys() -> None:
    """API keys: needed as soon as the gateway listens beyond this machine.

    \b
    firstdraft keys create alice --scope submit --scope read
    firstdraft keys list
    firstdraft keys revoke 3f9c2a71b04d
    """


@keys.command()
@click.argument("owner", type=WORDS)
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice([scope.value for scope in Scope]),
    help="What it allows; submit and read if none is given.",
)
@click.option("--weight", default=1.0, show_default=True, help="The owner's share beside others' where all are busy.")
@click.option(
    "--cache-group",
    metavar="NAME",
    help="Share cached prompt prefixes with all keys of this group, whose owners can then find out by timing which"
    " prompts others sent. Without it only the owner's own keys share.",
)
@click.option("--label", type=WORDS, default="", help="What it is for.")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def create(
    owner: str, scopes: tuple[str, ...], weight: float, cache_group: str | None, label: str, *, as_json: bool
) -> None:
    """Make a key for OWNER and show it, this once. Several keys may have one owner."""
    try:
        described = key_owner(owner, scopes, weight, cache_group)
    except ValidationError as error:
        raise click.ClickException(error.errors(include_url=False)[0]["msg"]) from error
    with server_failures(), api_keys() as stored:
        key = stored.create(described, label)
    click.echo(json.dumps({"key": key}) if as_json else key)


@keys.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def list_command(*, as_json: bool) -> None:
    """List all keys, without their secrets."""
    with server_failures(), api_keys() as stored:
        found = stored.listed()
    if as_json:
        click.echo(json.dumps([key.model_dump(mode="json", exclude={"digest"}) for key in found]))
        return
    table = Table("id", "owner", "scopes", "weight", "cache group", "made", "label")
    for key in found:
        made = datetime.fromtimestamp(key.created_at_s, UTC).strftime("%Y-%m-%d %H:%M")
        scopes = ", ".join(key.owner.scopes)
        group = key.owner.cache_group or ""
        table.add_row(key.key_id, key.owner.name, scopes, f"{key.owner.weight:g}", group, made, key.label)
    terminal().print(table)


@keys.command()
@click.argument("key_id")
def revoke(key_id: str) -> None:
    """Revoke the key of this id; it is refused from now on."""
    with server_failures(), api_keys() as stored:
        revoked = stored.revoke(key_id)
    if not revoked:
        raise click.ClickException(f"there is no key {key_id!r}: firstdraft keys list")


@keys.command(name="webhook-secret")
@click.argument("owner")
def webhook_secret(owner: str) -> None:
    """Show the secret with which OWNER's webhooks are signed (Standard Webhooks)."""
    name = checked_settings().webhooks.secret_env
    master = read_secret(name)
    if master is None:
        raise click.ClickException(f"webhooks are off: {name} is not set")
    click.echo(owners_secret(master, owner))
