from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.runtime.stall_detector import StallDetector

STALL_S = 3.0


def verdicts(*looks: dict[str, int], every_s: float = 1.0) -> list[bool]:
    watch = StallDetector(STALL_S)
    return [watch.is_stalled(progress, place * every_s) for place, progress in enumerate(looks)]


def test_an_engine_that_moves_nothing_for_long_enough_hangs():
    assert verdicts(*[{"a": 5, "b": 1}] * 5) == [False, False, False, True, True]


@pytest.mark.parametrize(
    "moves",
    [
        [{"a": 5, "b": 1}, {"a": 5, "b": 2}],
        [{"a": 5, "b": 1}, {"a": 5}],
        [{"a": 5, "b": 1}, {"a": 5, "b": 0}],
    ],
    ids=["one writes", "one leaves", "one starts again"],
)
def test_one_that_moves_is_enough(moves):
    assert not any(verdicts(*moves * 5))


def test_new_requests_do_not_hide_that_nothing_moves():
    looks = [{str(name): 0 for name in range(num)} for num in range(1, 7)]
    assert verdicts(*looks)[-1]


def test_an_idle_engine_does_not_hang():
    assert not any(verdicts(*[{}] * 20))


def test_a_process_that_was_stopped_is_not_taken_for_one_whose_engine_hangs():
    assert not any(verdicts({"a": 1}, {"a": 1}, every_s=3600.0))


@given(st.lists(st.integers(0, 1), min_size=1, max_size=40))
def test_it_hangs_exactly_when_the_last_looks_saw_no_move(steps):
    progress = [sum(steps[: place + 1]) for place in range(len(steps))]
    told = verdicts(*[{"a": value} for value in progress])
    still = 0
    expected = [False]
    for before, after in pairwise(progress):
        still = 0 if before != after else still + 1
        expected.append(still >= STALL_S)
    assert told == expected
