"""Waiting in experiments: each wait has an end, and then says what it waited for.

A benchmark must not hang on what a model happens to say, nor on a process that does not do what it should.
"""

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

#: Seconds between looks.
LOOK_S = 0.02
#: Seconds that a process may take to end once it was told to, before it is killed.
END_S = 60.0
#: Seconds that one answer of an engine may take, with others before it, on a slow machine.
ANSWER_S = 600.0


def until(look: Callable[[], T], what: str, within_s: float, *, look_s: float = LOOK_S) -> T:
    """Look until the answer is true, and give it. Raises TimeoutError that says what did not come."""
    deadline = time.monotonic() + within_s
    while not (found := look()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {within_s:g} s (last look: {found!r})")
        time.sleep(look_s)
    return found


def outcome_of(future: "Future[T]", what: str, within_s: float = ANSWER_S) -> T:
    """What came of it. Raises TimeoutError that says what did not come, or what the future itself does."""
    try:
        return future.result(within_s)
    except TimeoutError as error:
        if future.done():  # an error of its own
            raise
        raise TimeoutError(f"{what}: not within {within_s:g} s") from error


def end(process: "subprocess.Popen[bytes] | subprocess.Popen[str]") -> int:
    """Tell the process to end, and kill it if it does not; its exit status."""
    process.terminate()
    try:
        return process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait(END_S)


@contextmanager
def killed_after(process: "subprocess.Popen[str]", within_s: float, what: str) -> Iterator[None]:
    """Let the process, which leads a group, have so many seconds for the block; then its group is killed.

    So whoever reads what it says comes to an end. Raises TimeoutError then, whatever the block made of it. A block
    that breaks off kills the group as well.
    """
    late = threading.Event()

    def kill() -> None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    def be_late() -> None:
        late.set()
        kill()

    timer = threading.Timer(within_s, be_late)
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
