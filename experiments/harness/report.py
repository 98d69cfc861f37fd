"""How every benchmark takes options and reports: tables for people, then one JSON document on the last line."""

import argparse
import json
import os
import platform
from collections.abc import Mapping, Sequence

from rich.table import Table

from firstdraft.cli.terminal import terminal


def parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser of options whose help is the benchmark's docstring."""
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], title: str | None = None) -> None:
    """Print a table; None is an empty cell."""
    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*("" if cell is None else str(cell) for cell in row))
    terminal().print(table)


def print_document(
    bench: str, figures: Mapping[str, object], problems: Sequence[str] = (), **conditions: object
) -> int:
    """Print the problems and the JSON document; the exit status: 1 if there are problems.

    `conditions`: what else the figures depend on, beside the machine.
    """
    for problem in problems:
        terminal().print(problem, style="red", soft_wrap=True)
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), **conditions}
    print(json.dumps({"bench": bench, "machine": machine, "figures": figures, "problems": list(problems)}))
    return 1 if problems else 0
