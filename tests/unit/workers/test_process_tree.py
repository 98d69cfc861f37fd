"""The tie between a process and the one that it starts."""

import subprocess
import sys

import pytest

#: A process makes the tie, its child plays the parent that has ended, and the grandchild ties itself.
TOO_LATE = """
import os, signal
from workers.runtime.process_tree import ending_with_parent

tie = ending_with_parent(signal.SIGKILL)
child = os.fork()
if child == 0:
    grandchild = os.fork()
    if grandchild == 0:
        tie()
        os._exit(0)
    os._exit(-os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1]))
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no signal for a parent's end")
def test_a_process_whose_parent_ended_before_the_tie_was_made_ends_too():
    assert subprocess.run([sys.executable, "-c", TOO_LATE], check=False, timeout=60).returncode == 9
