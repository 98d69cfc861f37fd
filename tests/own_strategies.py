"""Confidence strategies as another package brings them: installed in a folder, found by their entry points."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from workers.edge.confidence import installed

#: Seconds that `sleepy` takes; `stuck` and `spinning` take for ever.
SLEEPY_S = 3.0
MODULE = f"""
import os
import time

def cautious(figures):
    return [p / 2 for p in figures.probability]

def counted(figures):
    with open(os.environ["STRATEGY_CALLS"], "a") as calls:
        calls.write("called\\n")
    return figures.probability

def broken(figures):
    raise LookupError("no idea")

def sleepy(figures):
    time.sleep({SLEEPY_S})
    return figures.probability

def stuck(figures):
    while True:
        time.sleep(1)

def spinning(figures):
    while True:
        pass

def wordy(figures):
    return ["quite"] * len(figures)
"""
NAMES = ["cautious", "counted", "broken", "sleepy", "stuck", "spinning", "wordy"]
METADATA = "Metadata-Version: 2.1\nName: own-strategy\nVersion: 1.0\n"


def write_package(folder: Path) -> Path:
    """The folder, with the package in it. `missing` is announced too, but cannot be imported."""
    (folder / "own_strategy.py").write_text(MODULE)
    metadata = folder / "own_strategy-1.0.dist-info"
    metadata.mkdir()
    entries = [*(f"{name} = own_strategy:{name}" for name in NAMES), "missing = no_such_module:missing"]
    (metadata / "entry_points.txt").write_text("\n".join(["[firstdraft.confidence_strategies]", *entries, ""]))
    (metadata / "METADATA").write_text(METADATA)
    return folder


@contextmanager
def own_strategies(folder: Path) -> Iterator[Path]:
    """The package is installed in this process. Gives the file in which `counted` leaves a line for each call."""
    calls = folder / "calls"
    calls.touch()
    sys.path.insert(0, str(write_package(folder)))
    os.environ["STRATEGY_CALLS"] = str(calls)
    installed.cache_clear()
    try:
        yield calls
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop("own_strategy", None)
        del os.environ["STRATEGY_CALLS"]
        installed.cache_clear()
