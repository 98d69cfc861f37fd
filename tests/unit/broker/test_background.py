import threading

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from broker.background import Loop
from tests.polling import until


@pytest.fixture
def start():
    loops: list[Loop] = []

    def make(step, **options) -> Loop:
        loop = Loop("test", step, **{"every_s": 0.01, **options})
        loops.append(loop)
        loop.start()
        return loop

    yield make
    for loop in loops:
        loop.close(10)


class Clumsy:
    """A step that fails its first calls, each with the next of the errors."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.calls = 0

    def step(self) -> None:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)


def test_a_loop_goes_on_whatever_its_step_raises(start, caplog):
    clumsy = Clumsy(RuntimeError("first"), RedisConnectionError("away"), UnicodeDecodeError("utf-8", b"", 0, 1, "x"))
    loop = start(clumsy.step)
    until(lambda: clumsy.calls > 4, "it is called after every failure")
    assert not loop.broken
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == [
        "background_step_failed loop=test"
    ], "the same loop's failures are logged with their traceback once a minute"


def test_a_loop_that_fails_for_long_is_broken_until_it_succeeds(start):
    fails = threading.Event()
    fails.set()

    def step() -> None:
        if fails.is_set():
            raise RuntimeError("again")

    loop = start(step, broken_after_s=0.0)
    until(lambda: loop.broken, "it is broken")
    fails.clear()
    loop.wake()
    until(lambda: not loop.broken, "it works again")


def test_a_redis_that_is_away_breaks_no_loop(start):
    clumsy = Clumsy(*[RedisConnectionError("away")] * 1000)
    loop = start(clumsy.step, broken_after_s=0.0)
    until(lambda: clumsy.calls >= 1, "it was called")
    assert not loop.broken


def test_a_loop_is_called_when_it_is_woken_and_never_after_it_was_closed(start):
    clumsy = Clumsy()
    loop = start(clumsy.step, every_s=1000.0)
    until(lambda: clumsy.calls == 1, "it is called at once")
    loop.wake()
    until(lambda: clumsy.calls == 2, "it is called again")
    loop.close(10)
    loop.wake()
    assert clumsy.calls == 2
    assert not loop.broken


def test_a_step_says_when_it_wants_to_be_called_again(start):
    calls = []

    def step() -> float:
        calls.append(None)
        return 0.001

    start(step, every_s=1000.0)
    until(lambda: len(calls) > 3, "it is called as often as it said")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_loop_whose_thread_ended_by_itself_is_broken():
    loop = Loop("test", lambda: (_ for _ in ()).throw(SystemExit), every_s=0.01)
    assert not loop.broken, "it was not started"
    loop.start()
    until(lambda: loop.broken, "its thread has ended")
