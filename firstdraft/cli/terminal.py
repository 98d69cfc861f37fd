"""Input from a terminal and output to it: text unchanged, whatever the locale.

All output goes through `terminal`: rich would otherwise take square brackets in answers, names and errors for markup
and leave them out.
"""

import codecs
import io
import os
import sys

import click
from rich.console import Console

#: Some editors put it before the first character of a file.
BYTE_ORDER_MARK = "\ufeff"


def terminal(*, stderr: bool = False, width: int | None = None) -> Console:
    """A console that prints strings unchanged: no markup, no emoji names, no highlighting. Style comes from `Text`."""
    return Console(stderr=stderr, width=width, markup=False, emoji=False, highlight=False)


def prepare_streams() -> None:
    """Keep a character that the locale lacks from ending a command.

    A locale without an encoding (C, POSIX) gets UTF-8, as in Python's UTF-8 mode (PEP 540). With any other, characters
    that its encoding lacks are written as escapes. Input must be valid in its encoding.
    """
    for stream, errors in ((sys.stdin, "strict"), (sys.stdout, "backslashreplace"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            is_ascii = codecs.lookup(stream.encoding).name == "ascii"
            stream.reconfigure(encoding="utf-8" if is_ascii else stream.encoding, errors=errors)


def standard_input() -> str:
    """All of standard input. Raises `UnicodeDecodeError`."""
    return sys.stdin.read().removeprefix(BYTE_ORDER_MARK)


class Words(click.ParamType):  # type: ignore[type-arg] # generic in newer releases of click only
    """Text on the command line. In a locale without an encoding, Python leaves its bytes undecoded."""

    name = "text"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """See click."""
        try:
            value.encode()
        except UnicodeEncodeError:  # undecoded bytes
            try:
                return os.fsencode(value).decode()
            except UnicodeError as error:
                self.fail(f"it is no text: {error}", param, ctx)
        return value


WORDS = Words()
