import json
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from firstdraft.cli import main


def run(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(main, arguments, env=environment)


def test_the_models_are_listed_for_machines(tmp_path: Path) -> None:
    listed = run("models", "list", "--json", FIRSTDRAFT_MODELS__CACHE_PATH=str(tmp_path))
    assert listed.exit_code == 0
    assert [(model["tier"], model["name"], model["prepared"]) for model in json.loads(listed.output)] == [
        ("edge", "demo", False),
        ("cloud", "demo", False),
        ("cloud", "demo-6x", False),
    ]


def test_the_models_are_listed_for_people(tmp_path: Path) -> None:
    listed = run("models", "list", FIRSTDRAFT_MODELS__CACHE_PATH=str(tmp_path))
    assert listed.exit_code == 0
    assert "demo-6x" in listed.output


def _commands(group: click.Group, *path: str) -> Iterator[tuple[str, ...]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        yield (*path, name)
        if isinstance(command, click.Group):
            yield from _commands(command, *path, name)


@pytest.mark.parametrize("command", list(_commands(main)), ids=" ".join)
def test_every_command_has_help(command: tuple[str, ...]) -> None:
    shown = run(*command, "--help")
    assert shown.exit_code == 0
    assert "Usage:" in shown.output


@pytest.mark.parametrize("command", ["run", "ask", "submit", "result", "watch", "cancel", "chat", "stats", "doctor"])
def test_help_has_an_example(command: str) -> None:
    assert f"firstdraft {command}" in run(command, "--help").output.split("Usage:")[1].split("\n", 1)[1]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete(shell: str) -> None:
    script = run("completion", shell)
    assert script.exit_code == 0
    assert "_FIRSTDRAFT_COMPLETE" in script.output


def test_a_bad_setting_is_one_line_and_no_traceback() -> None:
    refused = run("models", "list", FIRSTDRAFT_GATEWAY__PORT="70000")
    assert refused.exit_code == 1
    assert isinstance(refused.exception, SystemExit)
    assert refused.output.startswith("Error: invalid settings: gateway.port")
    assert refused.output.count("\n") == 1


def test_a_folder_that_cannot_be_written_is_one_line_and_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused = run("models", "prepare", FIRSTDRAFT_MODELS__CACHE_PATH=str(tmp_path / "file"))
    assert refused.exit_code == 1
    assert isinstance(refused.exception, SystemExit)
    assert "models.cache_path" in refused.output
