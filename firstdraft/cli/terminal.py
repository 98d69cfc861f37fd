"""What comes in from a terminal and what is shown there: text as it is, whatever the locale says.

Everything that is shown goes through `terminal`: rich would otherwise take square brackets in answers, names and
errors for its own marks and leave them out.
"""

import codecs
import io
import os
import sys

import click
from rich.console import Console

#: What some editors put before the first character of a file.
BYTE_ORDER_MARK = "\ufeff"


def terminal(*, stderr: bool = False, width: int | None = None) -> Console:
    """Shows strings character by character: no marks, no emoji by name, no colours of its own. Style is `Text`'s."""
    return Console(stderr=stderr, width=width, markup=False, emoji=False, highlight=False)


def prepare_streams() -> None:
    """Let no character that the locale lacks end a command.

    A locale that names no encoding gets UTF-8, as it would in Python's UTF-8 mode (PEP 540). In one that does, what
    it lacks is written as an escape. Input must be what it says it is.
    """
    for stream, errors in ((sys.stdin, "strict"), (sys.stdout, "backslashreplace"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            names_none = codecs.lookup(stream.encoding).name == "ascii"
            stream.reconfigure(encoding="utf-8" if names_none else stream.encoding, errors=errors)


def standard_input() -> str:
    """All of it. Raises `UnicodeDecodeError`."""
    return sys.stdin.read().removeprefix(BYTE_ORDER_MARK)


class Words(click.ParamType):  # type: ignore[type-arg] # generic in newer releases of click only
    """Words on the command line. Where the locale names no encoding, Python leaves their bytes undecoded."""

    name = "text"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """See click."""
        try:
            value.encode()
        except UnicodeEncodeError:  # bytes that were left
            try:
                return os.fsencode(value).decode()
            except UnicodeError as error:
                self.fail(f"it is no text: {error}", param, ctx)
        return value


WORDS = Words()
