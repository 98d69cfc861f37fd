"""`firstdraft batch`: many prompts from a file, resumed where it was interrupted."""

import hashlib
import json
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from pydantic import BaseModel, ValidationError
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn, TimeRemainingColumn
from rich.progress import ProgressColumn as Column
from rich.text import Text

from firstdraft.cli.failures import expected_failures
from firstdraft.cli.options import client_for, gateway_options, print_json
from firstdraft.cli.prompt_files import json_lines
from firstdraft.cli.terminal import terminal
from firstdraft.client.errors import NotFound
from firstdraft.client.sync import Client
from schemas.openai_files import Batch

#: Exit status of a batch that ended with lines that have no answer.
SOME_FAILED = 3
#: The endpoint of lines that are bodies of `POST /v1/jobs`.
JOBS_ENDPOINT = "/v1/jobs"


class StartedBatch(BaseModel):
    """The state file beside the output: a batch whose answers have not been downloaded yet."""

    #: SHA-256 of the input: another input is another batch.
    digest: str
    #: The idempotency key: it leads to the same batch again if we were interrupted before its id came back.
    key: str = ""
    window: str = ""
    #: None if starting it was interrupted.
    batch_id: str | None = None


class Rate(Column):
    """Lines a second since the bar began."""

    def render(self, task: Task) -> Text:
        """See rich."""
        return Text("" if not task.speed else f"{task.speed:.1f} lines/s")


@click.command()
@click.argument("source", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(dir_okay=False, path_type=Path), help="Answers.")
@click.option("--window", default="24h", show_default=True, help="How long it may take: 30m, 24h, …")
@gateway_options
def batch(source: Path, output: Path, window: str, url: str | None, as_json: bool) -> None:
    """Answer every line of SOURCE. Lines are requests of OpenAI's Batch API, or bodies of POST /v1/jobs.

    Answers go to OUTPUT, each with its line's custom_id (its number where it has none), in the order in which they
    came; lines that have none go to OUTPUT with .errors added, and the exit status is then 3. The work is the
    gateway's: after an interruption the same command goes on where it was.

    \b
    echo '{"prompt": "Name a metal."}' > prompts.jsonl
    firstdraft batch prompts.jsonl -o answers.jsonl
    """
    state_file = output.with_name(output.name + ".batch")
    with expected_failures(), client_for(url) as client:
        batch_id = _start(client, source, state_file, window)
        try:
            ended = _follow(client, batch_id, quiet=as_json)
        except KeyboardInterrupt:
            terminal(stderr=True).print(f"{batch_id} goes on; the same command follows it again")
            sys.exit(130)
        _fetch(client, ended, output)
        state_file.unlink()
    if as_json:
        print_json(ended)
    _report(ended, output, quiet=as_json)


def _start(client: Client, source: Path, state_file: Path, window: str) -> str:
    """Start a batch, or find the unfinished one of this input; returns its id."""
    with source.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    started = _read_state(state_file)
    if (
        started is not None
        and started.digest == digest
        and started.batch_id is not None
        and _is_known(client, started.batch_id)
    ):
        return started.batch_id
    if started is None or started.batch_id is not None or (started.digest, started.window) != (digest, window):
        started = StartedBatch(digest=digest, key=str(uuid.uuid4()), window=window)
    _write_state(state_file, started)  # before it is started: after an interruption the same key finds it
    with _as_batch(source) as (prepared, endpoint):
        made = client.start_batch(prepared, endpoint=endpoint, window=window, idempotency_key=started.key)
    _write_state(state_file, started.model_copy(update={"batch_id": made.id}))
    return made.id


def _read_state(state_file: Path) -> StartedBatch | None:
    """The state; None if there is none, or the file is damaged."""
    try:
        return StartedBatch.model_validate_json(state_file.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def _write_state(state_file: Path, started: StartedBatch) -> None:
    unfinished = state_file.with_name(state_file.name + ".tmp")
    unfinished.write_text(started.model_dump_json(), encoding="utf-8")
    unfinished.replace(state_file)


def _is_known(client: Client, batch_id: str) -> bool:
    try:
        client.batch_status(batch_id)
    except NotFound:
        return False
    return True


@contextmanager
def _as_batch(source: Path) -> Iterator[tuple[Path, str]]:
    """The input in the format of OpenAI's Batch API, and its endpoint. Raises `ClickException`."""
    _, first = next(json_lines(source), (0, b""))
    try:
        line = json.loads(first)
    except ValueError as error:
        raise click.ClickException(f"{source}: its first line is no JSON: {error}") from error
    if isinstance(line, dict) and "custom_id" in line:
        yield source, str(line.get("url"))
        return
    with tempfile.TemporaryDirectory(prefix="firstdraft-") as folder:
        prepared = Path(folder) / source.name
        with prepared.open("wb") as wrapped:
            for number, body in json_lines(source):
                head = json.dumps({"custom_id": str(number), "method": "POST", "url": JOBS_ENDPOINT})[:-1]
                wrapped.write(head.encode() + b', "body": ' + body + b"}\n")
        yield prepared, JOBS_ENDPOINT


def _follow(client: Client, batch_id: str, *, quiet: bool) -> Batch:
    """Show the batch's progress until it has ended."""
    described = TextColumn("{task.description}", markup=False)
    columns = (described, BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    with Progress(*columns, console=terminal(stderr=True), disable=quiet) as progress:
        bar = progress.add_task("validating", total=None)

        def show(batch: Batch) -> None:
            counts = batch.request_counts
            failed = f", {counts.failed} failed" if counts.failed else ""
            progress.update(
                bar,
                description=batch.status + failed,
                total=counts.total or None,
                completed=counts.completed + counts.failed,
            )

        return client.wait_for_batch(batch_id, show)


def _fetch(client: Client, batch: Batch, output: Path) -> None:
    """Download answers and errors. Replaces the files of an earlier run, also where there is nothing to download."""
    errors = _errors_beside(output)
    if batch.output_file_id is None:
        output.write_bytes(b"")
    else:
        client.download(batch.output_file_id, output)
    if batch.error_file_id is None:
        errors.unlink(missing_ok=True)
    else:
        client.download(batch.error_file_id, errors)


def _report(batch: Batch, output: Path, *, quiet: bool) -> None:
    """Report the outcome, as exit status too."""
    if batch.status == "failed":
        reasons = "; ".join(problem.message for problem in batch.errors.data) if batch.errors else "no reason was given"
        raise click.ClickException(f"{batch.id} failed: {reasons}")
    counts = batch.request_counts
    if not quiet:
        click.echo(f"{counts.completed} of {counts.total} lines answered: {output}", err=True)
    if counts.failed or batch.status != "completed":
        if not quiet:
            click.echo(f"{counts.failed} have no answer: {_errors_beside(output)}", err=True)
        sys.exit(SOME_FAILED)


def _errors_beside(output: Path) -> Path:
    return output.with_name(output.name + ".errors")
