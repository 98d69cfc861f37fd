"""Commands where the locale names no encoding, and Python is told not to make up for it."""

import json
import os
import subprocess
import sys

import pytest

from tests.polling import until
from tests.processes import ROOT, free_port, running

#: No locale, and none of what Python does about that.
PLAIN = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
#: A locale whose encoding lacks most characters. Python knows it by name only, so it is told directly.
LATIN = {"PYTHONUTF8": "0", "PYTHONIOENCODING": "latin-1"}
WORDS = "Größe → naïve 語"


def firstdraft(*arguments, given=b"", **environment):
    done = subprocess.run(
        [sys.executable, "-m", "firstdraft.cli", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        input=given,
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert b"Traceback" not in done.stderr, done.stderr.decode(errors="replace")
    return done


@pytest.mark.parametrize("environment", [PLAIN, LATIN, {"PYTHONUTF8": "1"}])
@pytest.mark.parametrize("command", [["--help"], ["ask", "--help"], ["submit", "--help"], ["nonsense → 語"]])
def test_help_and_errors_are_shown(command, environment):
    done = firstdraft(*command, **environment)
    assert done.returncode == (2 if command[0].startswith("nonsense") else 0)
    assert b"Usage:" in done.stdout + done.stderr


@pytest.mark.parametrize("environment", [PLAIN, {"PYTHONUTF8": "1"}])
def test_prompts_and_answers_keep_every_character(system, environment):
    """The stand-in engine answers with the prompt's words, the last first."""
    reach = {"FIRSTDRAFT_URL": system.url, **environment}
    answered = "語 naïve → Größe "
    for arguments, given in (
        (["ask", WORDS], b""),
        (["ask", "-"], WORDS.encode()),
        (["ask", "-"], b"\xef\xbb\xbf" + WORDS.encode()),
    ):
        done = firstdraft(*arguments, "--max-tokens", "4", given=given, **reach)
        assert done.stdout.decode() == answered + "\n"
    talked = firstdraft("chat", "--json", "--max-tokens", "4", "--system", WORDS, given=WORDS.encode(), **reach)
    assert json.loads(talked.stdout)["result"]["text"] == answered


def test_json_is_utf_8_in_every_locale(system):
    done = firstdraft("ask", WORDS, "--max-tokens", "4", "--json", FIRSTDRAFT_URL=system.url, **LATIN)
    assert json.loads(done.stdout)["result"]["text"] == "語 naïve → Größe "


def test_what_the_locale_lacks_is_written_as_an_escape(system):
    done = firstdraft("ask", WORDS, "--max-tokens", "4", FIRSTDRAFT_URL=system.url, **LATIN)
    assert done.stdout.decode("latin-1") == r"\u8a9e naïve \u2192 Größe " + "\n"


def test_input_that_is_no_text_is_said_in_one_line(system):
    for environment in (PLAIN, {"PYTHONUTF8": "1"}):
        done = firstdraft("ask", "-", given="Größe".encode("latin-1"), FIRSTDRAFT_URL=system.url, **environment)
        assert done.returncode == 1
        assert done.stderr.decode().startswith("Error: the input is no text in utf-8: ")
        assert done.stderr.count(b"\n") == 1


def test_settings_are_utf_8(tmp_path):
    file = tmp_path / "settings.yaml"
    for mark in ("", "\ufeff"):
        text = mark + f'gateway:\n  model_aliases: {{"{WORDS}": baseline}}\n'
        file.write_text(text, encoding="utf-8")
        code = "from config.settings import read_settings; print(ascii(read_settings().gateway.model_aliases))"
        environment = {**os.environ, **PLAIN, "FIRSTDRAFT_CONFIG": str(file)}
        read = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, check=True, timeout=60
        )
        assert read.stdout.decode().strip() == ascii({WORDS: "baseline"})


def test_a_process_that_prints_what_the_locale_lacks_ends_nothing(tmp_path):
    procfile = tmp_path / "Procfile"
    fakes = (ROOT / "tests" / "fakes" / "Procfile").read_text(encoding="utf-8")
    procfile.write_text(f"{fakes}loud: printf '{WORDS} and so on\\n'; exec sleep 600\n", encoding="utf-8")
    environment = {
        "REDIS_URL": "",
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "FIRSTDRAFT_GATEWAY__PORT": str(free_port()),
        "FIRSTDRAFT_EDGE__MODEL__PATH": "stand-in",
        "FIRSTDRAFT_CLOUD__MODEL__PATH": "stand-in",
    }
    command = ("firstdraft.cli", "up", "--procfile", str(procfile))
    with running(*command, log=tmp_path / "log", **environment, **PLAIN) as up:
        until(lambda: up.said("ready at"), "the system is ready", within_s=60)
        assert f"| {WORDS} and so on" in up.log.read_text(encoding="utf-8")
