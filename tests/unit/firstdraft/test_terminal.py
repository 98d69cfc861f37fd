from pathlib import Path

import click
import hypothesis.strategies as st
import pytest
from click.testing import CliRunner
from hypothesis import given
from rich.console import Console
from rich.table import Table

from firstdraft.cli import main
from firstdraft.cli.terminal import WORDS, terminal

#: What rich would take for marks and emoji of its own, and leave out or replace.
TEXTS = ["firstdraft[edge]", "[/tmp/a]", "[bold]x[/bold]", "[link=x]y", "a [/] b", r"\[z]", "p:smile:q", "[0, 1]"]


def lines_of(console: Console, what: object) -> str:
    with console.capture() as capture:
        console.print(what)
    return capture.get()


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_shown_as_it_is_by_itself_and_in_tables(text: str) -> None:
    console = terminal(width=200)
    assert lines_of(console, text) == text + "\n"
    table = Table("what", text)
    table.add_row("x", text)
    assert lines_of(console, table).count(text) == 2


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_words_are_what_was_typed_also_where_their_bytes_were_left_undecoded(words: str) -> None:
    assert WORDS.convert(words, None, None) == words
    undecoded = words.encode().decode("ascii", "surrogateescape")
    assert WORDS.convert(undecoded, None, None) == words


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(click.BadParameter):
        WORDS.convert(b"\xff".decode("ascii", "surrogateescape"), None, None)


def run(*arguments: str, **environment: str) -> str:
    return CliRunner().invoke(main, arguments, env={"COLUMNS": "300", **environment}).output


def test_the_doctor_shows_a_path_with_brackets(tmp_path: Path) -> None:
    folder = tmp_path / "[red]models"
    model = folder / "a[b].gguf"
    folder.mkdir()
    model.touch()
    assert str(model) in run("doctor", FIRSTDRAFT_EDGE__MODEL__PATH=str(model), REDIS_URL="")
    assert str(folder) in run("models", "list", FIRSTDRAFT_MODELS__CACHE_PATH=str(folder))
