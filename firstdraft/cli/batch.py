"""`firstdraft batch`: many prompts from a file, resumed wherever it was interrupted."""

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
from firstdraft.cli.json_lines import json_lines
from firstdraft.cli.options import client_for, gateway_options, print_json
from firstdraft.cli.terminal import terminal
from firstdraft.client.errors import NotFound
from firstdraft.client.sync import Client
from schemas.openai_files import Batch

#: Exit status of a batch that ended with lines that have no answer.
SOME_FAILED = 3
#: The endpoint of lines that are bodies of `POST /v1/jobs`.
JOBS_ENDPOINT = "/v1/jobs"


class Begun(BaseModel):
    """What the file beside the output remembers of a batch that has not been fetched."""

    #: SHA-256 of the input: another input is another batch.
    digest: str
    #: What makes it the same batch if it was begun and nobody was there any more to hear its id.
    key: str = ""
    window: str = ""
    #: None where its beginning was interrupted.
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
    memory = output.with_name(output.name + ".batch")
    with expected_failures(), client_for(url) as client:
        batch_id = _begin(client, source, memory, window)
        try:
            ended = _follow(client, batch_id, quiet=as_json)
        except KeyboardInterrupt:
            terminal(stderr=True).print(f"{batch_id} goes on; the same command follows it again")
            sys.exit(130)
        _fetch(client, ended, output)
        memory.unlink()
    if as_json:
        print_json(ended)
    _say_how_it_ended(ended, output, quiet=as_json)


def _begin(client: Client, source: Path, memory: Path, window: str) -> str:
    """The id of the batch that was begun for this input and not fetched, or of a new one."""
    with source.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    begun = _remembered(memory)
    if (
        begun is not None
        and begun.digest == digest
        and begun.batch_id is not None
        and _is_known(client, begun.batch_id)
    ):
        return begun.batch_id
    if begun is None or begun.batch_id is not None or (begun.digest, begun.window) != (digest, window):
        begun = Begun(digest=digest, key=str(uuid.uuid4()), window=window)
    _remember(memory, begun)  # first: an interruption between here and the end finds the same batch
    with _as_batch(source) as (prepared, endpoint):
        made = client.start_batch(prepared, endpoint=endpoint, window=window, idempotency_key=begun.key)
    _remember(memory, begun.model_copy(update={"batch_id": made.id}))
    return made.id


def _remembered(memory: Path) -> Begun | None:
    """What the file says; None where there is none, or it is torn."""
    try:
        return Begun.model_validate_json(memory.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def _remember(memory: Path, begun: Begun) -> None:
    unfinished = memory.with_name(memory.name + ".tmp")
    unfinished.write_text(begun.model_dump_json(), encoding="utf-8")
    unfinished.replace(memory)


def _is_known(client: Client, batch_id: str) -> bool:
    try:
        client.batch_status(batch_id)
    except NotFound:
        return False
    return True


@contextmanager
def _as_batch(source: Path) -> Iterator[tuple[Path, str]]:
    """The input as OpenAI's Batch API wants it, and its endpoint. Raises `ClickException`."""
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
    """Show how far it is until its end."""
    described = TextColumn("{task.description}", markup=False)
    columns = (described, BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    with Progress(*columns, console=terminal(stderr=True), disable=quiet) as progress:
        bar = progress.add_task("validating", total=None)

        def told(batch: Batch) -> None:
            counts = batch.request_counts
            failed = f", {counts.failed} failed" if counts.failed else ""
            progress.update(
                bar,
                description=batch.status + failed,
                total=counts.total or None,
                completed=counts.completed + counts.failed,
            )

        return client.wait_for_batch(batch_id, told)


def _fetch(client: Client, batch: Batch, output: Path) -> None:
    """Write answers and errors; a file of an earlier run that this one has nothing for is emptied or removed."""
    errors = _errors_beside(output)
    if batch.output_file_id is None:
        output.write_bytes(b"")
    else:
        client.download(batch.output_file_id, output)
    if batch.error_file_id is None:
        errors.unlink(missing_ok=True)
    else:
        client.download(batch.error_file_id, errors)


def _say_how_it_ended(batch: Batch, output: Path, *, quiet: bool) -> None:
    """Exit with what the lines' fates say."""
    if batch.status == "failed":
        reasons = "; ".join(one.message for one in batch.errors.data) if batch.errors else "no reason was given"
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
