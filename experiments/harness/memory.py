"""How much memory processes have, as Linux reports it."""

from pathlib import Path

import psutil


def peak_mb(pid: int | str = "self") -> float:
    """The largest resident memory of the process so far, in MiB; 0 if it has ended.

    `getrusage` would include the process that it was forked from.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    line = next((line for line in status.splitlines() if line.startswith("VmHWM")), None)
    return 0.0 if line is None else int(line.split()[1]) / 1024


def peak_of_tree_mb(pid: int) -> float:
    """The sum of the peaks of a process and of its children that still run, in MiB."""
    children = psutil.Process(pid).children(recursive=True)
    return peak_mb(pid) + sum(peak_mb(child.pid) for child in children)


def resident_of_tree_mb(pid: int) -> float:
    """The resident memory of a process and its children now, in MB."""
    process = psutil.Process(pid)
    return sum(each.memory_info().rss for each in [process, *process.children(recursive=True)]) / 1e6
