"""Lowering the priority, in processes of their own: a process cannot raise it again."""

import subprocess
import sys

import pytest

from workers.runtime.cpu_priority import GROUP, patience

LOWERS_PRIORITY = """
import os
from workers.runtime.cpu_priority import GROUP, lower_priority
lower_priority({niceness})
print(os.nice(0), GROUP.read_text().split()[-1] if GROUP.exists() else "{niceness}")
"""


@pytest.mark.parametrize("niceness", [0, 7])
def test_a_worker_and_its_session_get_a_lower_priority(niceness):
    before = GROUP.read_text() if GROUP.exists() else None
    command = [sys.executable, "-c", LOWERS_PRIORITY.format(niceness=niceness)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, start_new_session=True, timeout=60)
    assert done.stdout.split() == [str(niceness), str(niceness)]
    assert before == (GROUP.read_text() if GROUP.exists() else None)


def test_a_lower_priority_means_more_patience():
    assert (patience(0), patience(10)) == (1.0, pytest.approx(9.3, abs=0.05))
