"""Rules of this project that no linter has: waits have an end, files have an encoding, and text is shown as it is.

Each rule reads the source of what it is about and names the lines that break it.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: What is shipped, beside what measures it and what tests it.
SHIPPED = ("broker", "config", "firstdraft", "gateway", "schemas", "workers")
#: Calls that wait for ever when they are given nothing; `get` is a queue's.
ENDLESS = {"wait", "join", "result", "communicate", "acquire", "get"}
#: Functions that wait for a process unless they are given a `timeout`.
PROCESSES = {"run", "call", "check_call", "check_output"}
#: What makes the streams of a process text.
TEXT_MODE = {"text", "universal_newlines"}
#: What a loop that sleeps must look at, or call, to know when it is too late.
CLOCKS = {"monotonic", "perf_counter"}


def named(call: ast.Call) -> str:
    """The last part of the called name."""
    match call.func:
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return name
    return ""


def is_of(call: ast.Call, module: str) -> bool:
    """Whether it is called as a part of the module."""
    return (
        isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name) and call.func.value.id == module
    )


def has(call: ast.Call, keyword: str) -> bool:
    return any(one.arg in {keyword, None} for one in call.keywords)  # None: **options, whose writer must know


def calls(tree: ast.AST) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def endless_waits(tree: ast.AST, *, futures: bool = True) -> Iterator[tuple[int, str]]:
    """Waits without an end. `futures`: whether waiting for a future counts."""
    for call in calls(tree):
        name = named(call)
        counts = name in ENDLESS - (set() if futures else {"result"}) and not call.args and not call.keywords
        if counts and isinstance(call.func, ast.Attribute) and (name != "get" or "queue" in ast.unparse(call.func)):
            yield call.lineno, f".{name}() waits for ever"
        if is_of(call, "subprocess") and name in PROCESSES and not has(call, "timeout"):
            yield call.lineno, f"subprocess.{name} without a timeout"
    for loop in (node for node in ast.walk(tree) if isinstance(node, ast.While)):
        inside = {named(call) for call in calls(loop)}
        if "sleep" in inside and not inside & CLOCKS:
            yield loop.lineno, "a loop that sleeps and looks at no clock"


def unnamed_encodings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Text that is read or written in whatever encoding the locale has."""
    for call in calls(tree):
        name = named(call)
        if name in {"read_text", "write_text"} and not has(call, "encoding"):
            yield call.lineno, f"{name} without an encoding"
        mode = next((arg.value for arg in call.args if isinstance(arg, ast.Constant)), None)
        is_builtin = isinstance(call.func, ast.Name) and name == "open"
        is_path = isinstance(call.func, ast.Attribute) and name == "open" and (mode is not None or not call.args)
        is_binary = isinstance(mode, str) and "b" in mode
        if (is_builtin or is_path) and not is_binary and not has(call, "encoding"):
            yield call.lineno, "open without an encoding"
        is_text = any(one.arg in TEXT_MODE and getattr(one.value, "value", None) is True for one in call.keywords)
        if is_text and not has(call, "encoding"):
            yield call.lineno, f"{name} of text without an encoding"


def consoles(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Consoles that take brackets for marks."""
    for call in calls(tree):
        if named(call) == "Console":
            yield call.lineno, "a Console of its own: firstdraft.cli.terminal.terminal() makes them"


def broken(rule, *folders: str, but: tuple[str, ...] = (), **options: bool) -> list[str]:
    """Where the rule is broken."""
    files = [file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))]
    assert files
    names = {file: file.relative_to(ROOT).as_posix() for file in files}
    return [
        f"{names[file]}:{line}: {reason}"
        for file in files
        if names[file] not in but
        for line, reason in rule(ast.parse(file.read_text(encoding="utf-8")), **options)
    ]


def test_every_wait_in_experiments_has_an_end():
    assert broken(endless_waits, "experiments") == []


def test_every_wait_in_tests_has_an_end():
    """Futures wait on the test's own thread, and so are bounded by the limit that each test has (pyproject.toml)."""
    # The stand-in engine hangs because it is told to, in a process that is killed.
    assert broken(endless_waits, "tests", but=("tests/fakes/engine.py",), futures=False) == []


def test_every_file_that_is_shipped_or_measures_is_opened_in_an_encoding_that_is_named():
    assert broken(unnamed_encodings, *SHIPPED, "experiments") == []


def test_everything_that_a_terminal_shows_is_shown_as_it_is():
    assert broken(consoles, *SHIPPED, "experiments", but=("firstdraft/cli/terminal.py",)) == []


@pytest.mark.parametrize(
    ("rule", "source", "breaks"),
    [
        (endless_waits, "future.result()", True),
        (endless_waits, "future.result(5)", False),
        (endless_waits, "thread.join()", True),
        (endless_waits, "''.join(lines)", False),
        (endless_waits, "process.wait(timeout=5)", False),
        (endless_waits, "self._queue.get()", True),
        (endless_waits, "lines.get('a')", False),
        (endless_waits, "subprocess.run(command, check=True)", True),
        (endless_waits, "subprocess.run(command, check=True, timeout=5)", False),
        (endless_waits, "while not ready():\n    time.sleep(1)", True),
        (endless_waits, "while not ready():\n    assert time.monotonic() < end\n    time.sleep(1)", False),
        (unnamed_encodings, "path.read_text()", True),
        (unnamed_encodings, "path.read_text(encoding='utf-8')", False),
        (unnamed_encodings, "path.open()", True),
        (unnamed_encodings, "path.open('w')", True),
        (unnamed_encodings, "path.open('rb')", False),
        (unnamed_encodings, "files.open(file_id)", False),
        (unnamed_encodings, "open(path)", True),
        (unnamed_encodings, "subprocess.Popen(command, text=True)", True),
        (consoles, "Console()", True),
        (consoles, "def show(console: Console): ...", False),
    ],
)
def test_the_rules_find_what_they_are_about(rule, source, breaks):
    assert bool(list(rule(ast.parse(source)))) is breaks
