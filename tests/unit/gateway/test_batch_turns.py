from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.batches.turns import Waiting, in_turn


def a_batch(batch_id, owner, created_at=1, served_at=-1.0):
    return Waiting(batch_id, owner, created_at, served_at)


@pytest.mark.parametrize(
    ("waiting", "running", "expected"),
    [
        ([a_batch("b", "alice", 2), a_batch("a", "alice", 3), a_batch("c", "alice", 1)], {}, "cba"),
        ([a_batch("a", "alice"), a_batch("b", "alice"), a_batch("c", "bob", 9)], {}, "acb"),
        ([a_batch("a", "alice"), a_batch("c", "bob", 9)], {"alice": 1}, "ca"),
        ([a_batch("a", "alice"), a_batch("b", "alice"), a_batch("c", "bob", 9)], {"bob": 2}, "abc"),
        ([a_batch("a", "alice", 1, served_at=7.0), a_batch("b", "bob", 9)], {}, "ba"),
        ([a_batch("a", "alice", 1, served_at=7.0), a_batch("b", "alice", 9, served_at=5.0)], {}, "ba"),
        ([], {"alice": 4}, ""),
    ],
)
def test_the_owner_with_the_fewest_comes_next_and_then_who_waited_longest(waiting, running, expected):
    assert "".join(one.batch_id for one in in_turn(waiting, running)) == expected


WAITING = st.lists(
    st.builds(
        Waiting, st.uuids().map(str), st.sampled_from("abc"), st.integers(0, 9), st.sampled_from([-1.0, 1.0, 2.0])
    ),
    unique_by=lambda one: one.batch_id,
)


@given(WAITING, st.dictionaries(st.sampled_from("abc"), st.integers(0, 4)))
def test_every_batch_has_its_turn_and_no_owner_runs_ahead_of_one_that_waits(waiting, running):
    order = in_turn(waiting, running)
    assert sorted(order, key=str) == sorted(waiting, key=str)
    before = Counter(running)
    for place, one in enumerate(order):
        assert all(before[one.owner] <= before[other.owner] for other in order[place:])
        before[one.owner] += 1
