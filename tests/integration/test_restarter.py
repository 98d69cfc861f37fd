import signal
import sys
import time
from pathlib import Path
from threading import Thread

import psutil

from tests.polling import until
from tests.processes import running
from workers.__main__ import FIRST_DELAY_S, Restarter

COUNTING = "import sys, pathlib; p = pathlib.Path(sys.argv[1]); n = len(p.read_text()) + 1 if p.exists() else 1; "


def counting(file: Path, then: str) -> list[str]:
    """A command that counts its starts in a file, then does something."""
    return [sys.executable, "-c", COUNTING + f"p.write_text('x' * n); {then}", str(file)]


def test_a_worker_that_ends_badly_is_started_again_until_it_ends_well(tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    assert Restarter(counting(starts, "sys.exit(0 if n == 3 else 7)")).run() == 0
    assert len(starts.read_text()) == 3


def test_a_worker_that_cannot_start_is_given_up(tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    assert Restarter(counting(starts, "sys.exit(7)")).run() == 1
    assert len(starts.read_text()) == 5


def test_a_stop_ends_the_worker_and_starts_no_other(tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    restarter = Restarter(counting(starts, "import time; time.sleep(60)"))
    statuses: list[int] = []
    thread = Thread(target=lambda: statuses.append(restarter.run()))
    thread.start()
    until(starts.exists, "a start")
    restarter.stop(signal.SIGTERM, None)
    thread.join(10)
    assert statuses == [0]
    assert len(starts.read_text()) == 1


def test_a_stop_does_not_wait_for_the_next_start(tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    restarter = Restarter(counting(starts, "sys.exit(7)"))
    thread = Thread(target=restarter.run)
    thread.start()
    until(lambda: starts.exists() and len(starts.read_text()) == 4, "the start before a delay of seconds")
    began = time.monotonic()
    restarter.stop(signal.SIGTERM, None)
    thread.join(10)
    assert time.monotonic() - began < FIRST_DELAY_S * 2**3 / 2
    assert len(starts.read_text()) == 4


def test_a_restarter_that_is_killed_takes_its_worker_with_it(tmp_path: Path, redis_url: str) -> None:
    with running("workers", "edge", log=tmp_path / "log", REDIS_URL=redis_url) as restarter:
        children = until(lambda: psutil.Process(restarter.pid).children(), "a worker")
        restarter.signal(signal.SIGKILL)
        restarter.wait(5)
        until(lambda: not any(child.is_running() for child in children), "the worker's end")
        assert not any(child.is_running() for child in children)
