"""Failures that a user can mend, as one line and exit status 1; a traceback is a bug."""

from collections.abc import Iterator
from contextlib import contextmanager

import click

from firstdraft.cli.prompt_files import UnusableFile
from firstdraft.client.errors import FirstdraftError

#: Failures that any command may have.
MENDABLE: tuple[type[Exception], ...] = (FirstdraftError, UnusableFile, OSError)


@contextmanager
def expected_failures(*more: type[Exception]) -> Iterator[None]:
    """Turn the client's failures, those of reading and writing files, and `more` into a `ClickException`."""
    try:
        yield
    except (*MENDABLE, *more) as failure:
        raise click.ClickException(str(failure)) from failure
    except UnicodeDecodeError as failure:
        raise click.ClickException(f"the input is no text in {failure.encoding}: {failure}") from failure
