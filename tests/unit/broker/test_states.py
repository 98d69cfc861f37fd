import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from broker import states
from broker.states import FINISHED, TRANSITIONS, WAITING, WORKING, ImpossibleTransition, State
from schemas.policy import Tier

#: Every change that the life cycle in the design allows.
ALLOWED = {
    ("queued", "drafting"),
    ("queued", "failed"),
    ("queued", "cancelled"),
    ("drafting", "succeeded"),
    ("drafting", "escalated"),
    ("drafting", "queued"),
    ("drafting", "failed"),
    ("drafting", "cancelled"),
    ("escalated", "verifying"),
    ("escalated", "failed"),
    ("escalated", "cancelled"),
    ("verifying", "succeeded"),
    ("verifying", "escalated"),
    ("verifying", "failed"),
    ("verifying", "cancelled"),
}


@pytest.mark.parametrize("before", list(State))
@pytest.mark.parametrize("after", list(State))
def test_a_request_changes_only_as_the_life_cycle_says(before, after):
    if (before, after) in ALLOWED:
        assert states.check(before, after) is None
    else:
        with pytest.raises(ImpossibleTransition, match=f"{before} cannot become {after}"):
            states.check(before, after)


@pytest.mark.parametrize("state", [state for state in State if state not in FINISHED])
@pytest.mark.parametrize("end", sorted(FINISHED))
def test_every_unfinished_request_can_still_reach_every_end(state, end):
    reached, front = {state}, {state}
    while front:
        front = {after for before in front for after in TRANSITIONS[before]} - reached
        reached |= front
    assert end in reached


@pytest.mark.parametrize("tier", list(Tier))
def test_what_a_tier_works_on_can_go_back_to_where_it_waited(tier):
    assert WORKING[tier] in TRANSITIONS[WAITING[tier]]
    assert WAITING[tier] in TRANSITIONS[WORKING[tier]]


class Life(RuleBasedStateMachine):
    """A request that changes in any way that `check` lets it."""

    def __init__(self):
        super().__init__()
        self.state = State.QUEUED
        self.end = None

    @rule(after=st.sampled_from(State))
    def change(self, after):
        try:
            states.check(self.state, after)
        except ImpossibleTransition:
            return
        self.state = after
        if after in FINISHED and self.end is None:
            self.end = after

    @precondition(lambda self: self.end is not None)
    @invariant()
    def an_end_is_for_good(self):
        assert self.state == self.end

    @precondition(lambda self: self.end is None)
    @invariant()
    def an_unfinished_request_can_be_cancelled_and_can_fail(self):
        assert {State.CANCELLED, State.FAILED} <= TRANSITIONS[self.state]


TestLife = Life.TestCase
