"""The most memory that a process ever had, as Linux tells it."""

from pathlib import Path

import psutil


def peak_mb(pid: int | str = "self") -> float:
    """Megabytes that this process had at its peak; 0 for one that has ended.

    `getrusage` would also count the process that it was forked from.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    line = next((line for line in status.splitlines() if line.startswith("VmHWM")), None)
    return 0.0 if line is None else int(line.split()[1]) / 1024


def peak_of_tree_mb(pid: int) -> float:
    """The sum of the peaks of a process and of those that it has started and that still run."""
    started = psutil.Process(pid).children(recursive=True)
    return peak_mb(pid) + sum(peak_mb(child.pid) for child in started)
