"""The command line: a file for each family of commands. Each says what went wrong in one line."""

from importlib import import_module
from typing import Any

import click

from firstdraft.cli.terminal import prepare_streams

#: Where each command is, in the order in which help lists them.
COMMANDS = {
    "up": "system:up",
    "run": "run:run",
    "demo": "system:demo",
    "doctor": "doctor:doctor",
    "ask": "jobs:ask",
    "chat": "chat:chat",
    "submit": "jobs:submit",
    "result": "jobs:result",
    "watch": "jobs:watch",
    "cancel": "jobs:cancel",
    "batch": "batch:batch",
    "stats": "state:stats",
    "workers": "state:workers",
    "bench": "bench:bench",
    "ablate": "ablation:ablate_command",
    "calibrate": "calibrate:calibrate",
    "calibration": "calibration:calibration",
    "models": "models:models",
    "keys": "keys:keys",
    "completion": "completion:completion",
}
#: Commands that need the packages of the server, with the extra that brings all that each needs.
SERVER_COMMANDS = dict.fromkeys(("up", "run", "demo", "doctor", "ablate", "models", "keys"), "server") | {
    "calibrate": "quality",
    "calibration": "quality",
}


class Commands(click.Group):
    """Imports a command when it is wanted, so that each needs, and waits for, only what it uses."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """See click."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """See click."""
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name].partition(":")
        try:
            if cmd_name in SERVER_COMMANDS:
                import_module("firstdraft.local")  # puts the server's packages on the path
            command: click.Command = getattr(import_module(f"firstdraft.cli.{module}"), name)
        except ModuleNotFoundError as missing:
            if cmd_name not in SERVER_COMMANDS:
                raise
            return _unavailable(cmd_name, missing)
        return command

    def main(self, *arguments: Any, **options: Any) -> Any:
        """See click. The streams come first: help and errors are text too."""
        prepare_streams()
        return super().main(*arguments, **options)


def _unavailable(name: str, missing: ModuleNotFoundError) -> click.Command:
    """Stands for a command of the server where its extra is not installed."""
    advice = f"pip install 'firstdraft[{SERVER_COMMANDS[name]}]'"

    def refuse() -> None:
        raise click.ClickException(f"firstdraft {name} needs the server ({missing}): {advice}")

    anything = {"ignore_unknown_options": True, "allow_extra_args": True}
    return click.Command(name, context_settings=anything, callback=refuse, help=f"Needs the server: {advice}")


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="firstdraft")
def main() -> None:
    """A small model drafts every answer; a large model verifies the drafts that should not be trusted.

    \b
    firstdraft up                     run everything on this machine
    firstdraft ask "Why is ice slippery?"
    firstdraft chat
    firstdraft COMMAND --help         what a command takes, with examples
    """
