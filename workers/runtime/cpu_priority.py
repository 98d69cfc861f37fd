"""Stepping back for other programs on the same processors."""

import logging
import os
from pathlib import Path

log = logging.getLogger(__name__)

#: Where Linux keeps the niceness of a session's group. Where it makes such groups, a process's own niceness only counts
#: against others of its session.
GROUP = Path("/proc/self/autogroup")
#: What one step of niceness makes of a process's weight: Linux divides it by this.
WEIGHT_STEP = 1.25


def patience(niceness: int) -> float:
    """How many times longer the same work may take where others leave as little time as they can."""
    return WEIGHT_STEP**niceness


def lower_priority(niceness: int) -> None:
    """Let this process, its session and whatever it starts be run less than others. 0 changes nothing."""
    if not niceness:
        return
    os.nice(niceness)
    try:
        if GROUP.exists():
            GROUP.write_text(str(niceness), encoding="ascii")
    except OSError as error:
        log.warning("group_not_stepped_back niceness=%d error=%s", niceness, error)
