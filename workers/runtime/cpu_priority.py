"""Lowers the CPU priority of this process, so that other programs on the machine come first."""

import logging
import os
from pathlib import Path

log = logging.getLogger(__name__)

#: Where Linux keeps the niceness of a session's group. With such groups, a process's own niceness only counts within
#: its session.
GROUP = Path("/proc/self/autogroup")
#: Linux divides a process's weight by this for each step of niceness.
WEIGHT_STEP = 1.25


def patience(niceness: int) -> float:
    """How many times longer the same work may take while other programs use all the time that they can get."""
    return WEIGHT_STEP**niceness


def lower_priority(niceness: int) -> None:
    """Lower the priority of this process, its session and whatever it starts. 0 changes nothing."""
    if not niceness:
        return
    os.nice(niceness)
    try:
        if GROUP.exists():
            GROUP.write_text(str(niceness), encoding="ascii")
    except OSError as error:
        log.warning("group_not_stepped_back niceness=%d error=%s", niceness, error)
