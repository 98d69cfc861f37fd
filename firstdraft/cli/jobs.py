"""One prompt at a time: ask, submit, result, watch, cancel."""

import sys
from typing import Any

import click

from firstdraft.cli.failures import expected_failures
from firstdraft.cli.options import client_for, conversation, gateway_options, print_json, sampling_options
from firstdraft.cli.render import figures, show_live
from firstdraft.cli.terminal import WORDS, standard_input, terminal
from firstdraft.client.calls import result_of
from schemas.events import Done, Failed
from schemas.jobs import Job


def _prompt(given: str) -> str:
    return standard_input() if given == "-" else given


@click.command()
@click.argument("prompt", type=WORDS)
@sampling_options
@gateway_options
def ask(prompt: str, system: str | None, url: str | None, as_json: bool, **sampling: Any) -> None:
    """Answer PROMPT (- reads standard input) as it is generated; the cloud's corrections are green.

    \b
    firstdraft ask "What is the capital of France?"
    cat report.txt | firstdraft ask - --system "Summarise in one sentence." --max-tokens 60
    firstdraft ask "Name a metal." --policy edge_only --json
    """
    console = terminal()
    with expected_failures(), client_for(url) as client:
        job = client.submit(conversation(_prompt(prompt), system), **sampling)
        try:
            if as_json or not console.is_terminal:
                _print_answer(client.wait(job.id), as_json=as_json)
                return
            ended = show_live(console, client.events(job.id))
        except KeyboardInterrupt:
            client.cancel(job.id)
            sys.exit(130)
    if isinstance(ended, Done):
        console.print(figures(ended.result))
    elif isinstance(ended, Failed):
        raise click.ClickException(ended.failure.message)


@click.command()
@click.argument("prompt", type=WORDS)
@sampling_options
@gateway_options
def submit(prompt: str, system: str | None, url: str | None, as_json: bool, **sampling: Any) -> None:
    """Submit PROMPT (- reads standard input) and print the job's id at once.

    \b
    id=$(firstdraft submit "Write a limerick.")
    firstdraft result "$id"
    """
    with expected_failures(), client_for(url) as client:
        job = client.submit(conversation(_prompt(prompt), system), **sampling)
    if as_json:
        print_json(job)
    else:
        click.echo(job.id)


@click.command()
@click.argument("job_id")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0),
    default=None,
    help="Seconds to wait; else for ever.",
)
@gateway_options
def result(job_id: str, timeout_s: float | None, url: str | None, as_json: bool) -> None:
    """Wait for a job and print its answer. Exit status 1 if there is none.

    \b
    firstdraft result 1f0c… --timeout 30
    """
    with expected_failures(), client_for(url) as client:
        _print_answer(client.wait(job_id, timeout_s), as_json=as_json)


@click.command()
@click.argument("job_id")
@gateway_options
def watch(job_id: str, url: str | None, as_json: bool) -> None:
    """Show a job's events from its beginning to its end.

    \b
    firstdraft watch 1f0c…
    firstdraft watch 1f0c… --json | jq .type
    """
    with expected_failures(), client_for(url) as client:
        if as_json:
            for event in client.events(job_id):
                print_json(event)
            return
        for event in client.events(job_id):
            fields = event.model_dump(mode="json", exclude={"type", "result"}, exclude_none=True)
            click.echo(f"{event.type:<10} " + " ".join(f"{name}={value}" for name, value in fields.items()))


@click.command()
@click.argument("job_ids", nargs=-1, required=True)
@gateway_options
def cancel(job_ids: tuple[str, ...], url: str | None, as_json: bool) -> None:
    """Cancel jobs; a finished one stays as it is.

    \b
    firstdraft cancel 1f0c… 77ab…
    """
    with expected_failures(), client_for(url) as client:
        for job_id in job_ids:
            job = client.cancel(job_id)
            if as_json:
                print_json(job)
            else:
                click.echo(f"{job.id} {job.status}")


def _print_answer(job: Job, *, as_json: bool) -> None:
    """Print the answer. Without one: exit status 1 after the JSON, else raises `JobFailed` or `JobCancelled`."""
    if as_json:
        print_json(job)
        if job.result is None:
            sys.exit(1)
    else:
        click.echo(result_of(job).text)
