"""What commands that talk to a gateway share: its address, the API key, options, JSON output."""

import json
import os
from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeVar

import click
import httpx
from pydantic import BaseModel

from firstdraft.cli.failures import expected_failures
from firstdraft.cli.terminal import WORDS
from firstdraft.client.connecting import DEFAULT_URL
from firstdraft.client.sync import Client

#: Variables that tell clients where the gateway is and who they are.
URL_VARIABLE, API_KEY_VARIABLE = "FIRSTDRAFT_URL", "FIRSTDRAFT_API_KEY"

CommandT = TypeVar("CommandT", bound=Callable[..., object])

json_option = click.option("--json", "as_json", is_flag=True, help="For machines: JSON, one document per line.")


def gateway_options(command: CommandT) -> CommandT:
    """--url and --json."""
    url = click.option("--url", default=None, help=f"The gateway; ${URL_VARIABLE} or the configured one if not given.")
    return url(json_option(command))


def sampling_options(command: CommandT) -> CommandT:
    """What a prompt may ask for."""
    options = (
        click.option("--max-tokens", type=click.IntRange(1), default=None, help="The longest answer."),
        click.option("--temperature", type=click.FloatRange(0, 2), default=None, help="0, the default, is greedy."),
        click.option("--seed", type=click.IntRange(0), default=None, help="Makes sampling repeatable."),
        click.option("--policy", default=None, help="Which tiers answer and how: baseline, edge_only, …"),
        click.option("--system", type=WORDS, default=None, help="A system message before the prompt."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def gateway_url(url: str | None) -> str:
    """The gateway that a command talks to. Ends the command if what was given is no URL."""
    chosen = url or os.environ.get(URL_VARIABLE)
    if not chosen:
        return _configured_url()
    try:
        parsed = httpx.URL(chosen)
    except httpx.InvalidURL as error:
        hint = "an IPv6 address is written in brackets, as in http://[::1]:8400"
        raise click.ClickException(f"no gateway can be at {chosen} ({error}); {hint}") from error
    if parsed.scheme not in {"http", "https"}:
        raise click.ClickException(f"no gateway can be at {chosen}: it must start with http:// or https://")
    return chosen


def _configured_url() -> str:
    """Where the settings put the gateway, or the default where only the client is installed."""
    try:
        import_module("firstdraft.local")  # puts the server's packages on the path
        config = import_module("config.settings")
    except ModuleNotFoundError:
        return DEFAULT_URL
    with expected_failures(config.InvalidSettings):
        return str(config.read_settings().gateway.local_url)


def client_for(url: str | None) -> Client:
    """A client of the gateway."""
    return Client(gateway_url(url), api_key=os.environ.get(API_KEY_VARIABLE) or None)


def conversation(prompt: str, system: str | None) -> list[dict[str, str]]:
    """The prompt as a user message, after the system message if there is one."""
    before = [{"role": "system", "content": system}] if system else []
    return [*before, {"role": "user", "content": prompt}]


def print_json(document: BaseModel | dict[str, Any]) -> None:
    """One document on one line, in UTF-8 whatever the locale, as JSON is."""
    click.echo(document.model_dump_json().encode() if isinstance(document, BaseModel) else json.dumps(document))
