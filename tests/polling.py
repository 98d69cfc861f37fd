"""Waiting in tests: look again until something is so, and fail when it is not in time."""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

#: Seconds that a thread of a test may take to end once nothing keeps it.
END_S = 30.0
#: Seconds between looks.
LOOK_S = 0.02


def until(look: Callable[[], T], what: str, *, within_s: float = 10.0) -> T:
    """Look until the answer is true, and give it. Raises `AssertionError` that says what did not come."""
    deadline = time.monotonic() + within_s
    while True:
        answer = look()
        if answer:
            return answer
        if time.monotonic() >= deadline:
            raise AssertionError(f"{what}: not within {within_s:g} s (last look: {answer!r})")
        time.sleep(LOOK_S)


def joined(thread: threading.Thread, *, within_s: float = END_S) -> None:
    """Wait for the thread's end. Raises `AssertionError` that names the thread where it does not come."""
    thread.join(within_s)
    assert not thread.is_alive(), f"the thread {thread.name} has not ended within {within_s:g} s"
