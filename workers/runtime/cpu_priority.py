"""Lowers the CPU priority of this process in favour of other programs on the machine."""

import logging
import os
from pathlib import Path

log = logging.getLogger(__name__)

#: Linux's niceness of a session's autogroup. With autogroups, a process's own niceness counts only within its session.
GROUP = Path("/proc/self/autogroup")
#: Linux divides a process's CPU weight by this for each step of niceness.
WEIGHT_STEP = 1.25


def patience(niceness: int) -> float:
    """How many times longer the same work may take while other programs use as much CPU time as they can get."""
    return WEIGHT_STEP**niceness


def lower_priority(niceness: int) -> None:
    """Lower the priority of this process, its session and its future children. 0 changes nothing."""
    if not niceness:
        return
    os.nice(niceness)
    try:
        if GROUP.exists():
            GROUP.write_text(str(niceness), encoding="ascii")
    except OSError as error:
        log.warning("group_not_stepped_back niceness=%d error=%s", niceness, error)
