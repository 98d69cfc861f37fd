"""Waits with a timeout whose error says what did not happen, so that no benchmark hangs."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import TypeVar

T = TypeVar("T")

#: Seconds between checks.
LOOK_S = 0.02
#: Seconds that a process may take to end after SIGTERM before it is killed.
END_S = 60.0
#: Seconds that one answer of an engine may take on a slow machine, with others queued before it.
ANSWER_S = 600.0


def until(look: Callable[[], T], what: str, within_s: float, *, look_s: float = LOOK_S) -> T:
    """Call `look` until it returns something true, and return that. Raises TimeoutError that names `what`."""
    deadline = time.monotonic() + within_s
    while not (found := look()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {within_s:g} s (last result: {found!r})")
        time.sleep(look_s)
    return found


def outcome_of(future: "Future[T]", what: str, within_s: float = ANSWER_S) -> T:
    """The future's result. Raises TimeoutError that names `what`, or the future's own error."""
    try:
        return future.result(within_s)
    except TimeoutError as error:
        if future.done():  # it is the future's own error
            raise
        raise TimeoutError(f"{what}: not within {within_s:g} s") from error


def end(process: "subprocess.Popen[bytes] | subprocess.Popen[str]") -> int:
    """Terminate the process, and kill it if it does not end in time; returns its exit status."""
    process.terminate()
    try:
        return process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait(END_S)


@contextmanager
def killed_after(process: "subprocess.Popen[str]", within_s: float, what: str) -> Iterator[None]:
    """Kill the process's group if the block takes longer than `within_s`, so that reading its output ends.

    Then raises TimeoutError, whatever the block raised. If the block raises before that, the group is killed as well.
    """
    late = threading.Event()

    def kill() -> None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    def expire() -> None:
        late.set()
        kill()

    timer = threading.Timer(within_s, expire)
    timer.start()
    try:
        yield
    except BaseException:
        kill()
        if not late.is_set():
            raise
    finally:
        timer.cancel()
    if late.is_set():
        raise TimeoutError(f"{what}: not within {within_s:g} s")
