"""Makes child processes end with their parent, even if it is killed.

On Linux only; elsewhere both functions do nothing, and children outlive a parent that is killed.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Callable

#: Linux's prctl options for the signal that a process gets when its parent ends, and for adopting orphaned descendants.
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
#: Loaded at import, because loading after a fork may block for ever.
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def ending_with_parent(number: signal.Signals) -> Callable[[], None]:
    """For `preexec_fn`: the new process gets this signal when the thread that started it ends."""
    parent = os.getpid()

    def set_death_signal() -> None:
        if _LIBC is not None:
            _LIBC.prctl(_PR_SET_PDEATHSIG, number)
            if os.getppid() != parent:  # it ended before the call
                os.kill(os.getpid(), number)

    return set_death_signal


def adopt_orphans() -> None:
    """From now on, orphaned descendants become children of this process."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1)
