"""Stepping back for other programs on the same processors."""

import logging
import os
from pathlib import Path

log = logging.getLogger(__name__)

#: Where Linux keeps the niceness of a session's group. Where it makes such groups, a process's own niceness only counts
#: against others of its session.
GROUP = Path("/proc/self/autogroup")


def step_back(niceness: int) -> None:
    """Let this process, its session and whatever it starts be run less than others. 0 changes nothing."""
    if not niceness:
        return
    os.nice(niceness)
    try:
        if GROUP.exists():
            GROUP.write_text(str(niceness))
    except OSError as error:
        log.warning("group_not_stepped_back niceness=%d error=%s", niceness, error)
