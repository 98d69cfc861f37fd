"""`firstdraft chat`: a conversation in the terminal."""

import sys
from collections.abc import Mapping

import click
from rich.console import Console
from rich.text import Text

from firstdraft.cli.failures import expected_failures
from firstdraft.cli.options import client_for, gateway_options, print_json, sampling_options
from firstdraft.cli.render import figures, paint
from firstdraft.cli.terminal import terminal
from firstdraft.client.errors import FirstdraftError
from firstdraft.client.sync import Client
from schemas.events import Done, Failed

#: What can be typed besides a message.
HELP = "/new forgets the conversation, /quit or Ctrl-D ends; Ctrl-C stops an answer."


@click.command()
@sampling_options
@gateway_options
def chat(
    max_tokens: int | None,
    temperature: float | None,
    seed: int | None,
    policy: str | None,
    system: str | None,
    url: str | None,
    as_json: bool,
) -> None:
    """Talk. The draft appears at once, dim; the cloud's corrections replace it, green.

    Reads messages from standard input, so it can be piped into; with --json each answer is one document.

    \b
    firstdraft chat --system "Answer like a pirate."
    printf 'Hello\\nWho are you?\\n' | firstdraft chat --json
    """
    console = terminal()
    options = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed, "policy": policy}
    before = [{"role": "system", "content": system}] if system else []
    turns: list[dict[str, str]] = []
    typed = sys.stdin.isatty()
    if typed and not as_json:
        console.print(HELP, style="dim")
    with expected_failures(), client_for(url) as client:
        while (message := _read(console, prompting=typed and not as_json)) is not None:
            if message == "/quit":
                return
            if message == "/new":
                turns = []
            elif message:
                asked = {"role": "user", "content": message}
                answer = _answer(client, console, [*before, *turns, asked], options, as_json=as_json)
                if answer is not None:
                    turns += [asked, {"role": "assistant", "content": answer}]


def _read(console: Console, *, prompting: bool) -> str | None:
    """The next message; None at the end of the input."""
    try:
        return console.input(Text("> ", style="bold")).strip() if prompting else input().strip()
    except EOFError:
        return None
    except KeyboardInterrupt:
        console.print()
        return ""


def _answer(
    client: Client,
    console: Console,
    turns: list[dict[str, str]],
    options: Mapping[str, object],
    *,
    as_json: bool,
) -> str | None:
    """Show the answer and give its text; None where there is none, which does not end the conversation."""
    job_id = None
    try:
        job_id = client.submit(turns, **options).id
        if as_json:
            job = client.wait(job_id)
            print_json(job)
            return job.result.text if job.result else None
        ended = paint(console, client.events(job_id))
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
