"""`firstdraft doctor`."""

import sys
from dataclasses import asdict

import click
from rich.table import Table
from rich.text import Text

from firstdraft.cli.options import json_option, print_json
from firstdraft.cli.server import checked_settings, server_failures
from firstdraft.cli.terminal import terminal
from firstdraft.local.doctor import examine, versions


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Check Redis, models, engines and versions, and say what to do. Exit status 1 if something must be done.

    \b
    firstdraft doctor
    REDIS_URL=redis://10.0.0.5:6379 firstdraft doctor --json
    """
    settings = checked_settings()
    with server_failures():
        findings = list(examine(settings))
    if as_json:
        print_json({"versions": versions(), "findings": [asdict(found) | {"fine": found.fine} for found in findings]})
    else:
        table = Table("", "what", "found", "what to do")
        for found in findings:
            mark = Text(*(("ok", "green") if found.fine else ("note", "yellow") if found.optional else ("mend", "red")))
            table.add_row(mark, found.name, found.found, found.advice)
        terminal().print(table)
    if not all(found.fine or found.optional for found in findings):
        sys.exit(1)
