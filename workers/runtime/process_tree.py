"""Ties processes together, so that none is left behind when the one that started it is killed.

Linux does this; elsewhere both functions do nothing, and only an orderly stop ends everything.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Callable

#: prctl options of Linux: the signal that a process gets when its parent ends; taking in descendants' orphans.
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
#: Loaded here and not after a fork, where loading may block for ever.
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def ending_with_parent(number: signal.Signals) -> Callable[[], None]:
    """For `preexec_fn`: the new process gets this signal when the thread that starts it ends, however it ends."""
    parent = os.getpid()

    def tie() -> None:
        if _LIBC is not None:
            _LIBC.prctl(_PR_SET_PDEATHSIG, number)
            if os.getppid() != parent:  # it ended before the tie was made
                os.kill(os.getpid(), number)

    return tie


def adopt_orphans() -> None:
    """Make every process that a descendant leaves behind a child of this one, for the rest of its life."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1)
