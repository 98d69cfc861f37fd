"""The command line: a file for each family of commands. Each says what went wrong in one line."""

from typing import Any

import click

from firstdraft.cli import ablate, batch, bench, chat, completion, doctor, jobs, keys, models, state, system
from firstdraft.cli.terminal import prepare_streams

#: In the order in which help lists them.
COMMANDS = (
    system.up,
    system.demo,
    doctor.doctor,
    jobs.ask,
    chat.chat,
    jobs.submit,
    jobs.result,
    jobs.watch,
    jobs.cancel,
    batch.batch,
    state.stats,
    state.workers,
    bench.bench,
    ablate.ablate_command,
    models.models,
    keys.keys,
    completion.completion,
)


class InOrder(click.Group):
    """Lists commands as they were added."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """The names."""
        return list(self.commands)

    def main(self, *arguments: Any, **options: Any) -> Any:
        """See click. The streams come first: help and errors are text too."""
        prepare_streams()
        return super().main(*arguments, **options)


@click.group(cls=InOrder, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="firstdraft")
def main() -> None:
    """A small model drafts every answer; a large model verifies the drafts that should not be trusted.

    \b
    firstdraft up                     run everything on this machine
    firstdraft ask "Why is ice slippery?"
    firstdraft chat
    firstdraft COMMAND --help         what a command takes, with examples
    """


for _command in COMMANDS:
    main.add_command(_command)
