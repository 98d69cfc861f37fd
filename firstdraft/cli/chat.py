"""`firstdraft chat`: a conversation in the terminal."""

import sys
from collections.abc import Mapping
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from firstdraft.cli.failures import expected_failures
from firstdraft.cli.options import client_for, gateway_options, print_json, sampling_options
from firstdraft.cli.render import figures, show_live
from firstdraft.cli.terminal import terminal
from firstdraft.client.errors import FirstdraftError
from firstdraft.client.sync import Client
from schemas.events import Done, Failed

#: The commands within a conversation.
HELP = "/new starts a new conversation, /quit or Ctrl-D ends; Ctrl-C stops an answer."


@click.command()
@sampling_options
@gateway_options
def chat(system: str | None, url: str | None, as_json: bool, **sampling: Any) -> None:
    """Have a conversation. Drafts appear at once, dim; the cloud's corrections replace them, green.

    Reads one message per line from standard input, which may be a pipe; with --json each answer is one document.

    \b
    firstdraft chat --system "Answer like a pirate."
    printf 'Hello\\nWho are you?\\n' | firstdraft chat --json
    """
    console = terminal()
    before = [{"role": "system", "content": system}] if system else []
    turns: list[dict[str, str]] = []
    interactive = sys.stdin.isatty() and not as_json
    if interactive:
        console.print(HELP, style="dim")
    with expected_failures(), client_for(url) as client:
        while (message := _read(console, interactive=interactive)) is not None:
            if message == "/quit":
                return
            if message == "/new":
                turns = []
            elif message:
                asked = {"role": "user", "content": message}
                answer = _answer(client, console, [*before, *turns, asked], sampling, as_json=as_json)
                if answer is not None:
                    turns += [asked, {"role": "assistant", "content": answer}]


def _read(console: Console, *, interactive: bool) -> str | None:
    """The next message; None at the end of the input."""
    try:
        return console.input(Text("> ", style="bold")).strip() if interactive else input().strip()
    except EOFError:
        return None
    except KeyboardInterrupt:
        console.print()
        return ""


def _answer(
    client: Client,
    console: Console,
    turns: list[dict[str, str]],
    sampling: Mapping[str, Any],
    *,
    as_json: bool,
) -> str | None:
    """Show the answer and return its text; None if there is none, which does not end the conversation."""
    job_id = None
    try:
        job_id = client.submit(turns, **sampling).id
        if as_json:
            job = client.wait(job_id)
            print_json(job)
            return job.result.text if job.result else None
        ended = show_live(console, client.events(job_id))
    except KeyboardInterrupt:
        if job_id is not None:
            client.cancel(job_id)
        console.print("stopped", style="dim")
        return None
    except FirstdraftError as error:
        console.print(Text(str(error), style="red"))
        return None
    if isinstance(ended, Done):
        console.print(figures(ended.result))
        return ended.result.text or None
    if isinstance(ended, Failed):
        console.print(Text(ended.failure.message, style="red"))
    return None
