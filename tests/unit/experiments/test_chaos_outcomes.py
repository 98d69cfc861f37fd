"""What the fault runs make of the outcomes of requests."""

from dataclasses import replace

import pytest

from experiments.chaos.outcomes import RequestOutcome, broken_promises, figures

GOOD = RequestOutcome(is_known=True, is_finished=True, has_failed=False, num_ends=1, agrees=True, recoveries_s=())


def test_figures_count_what_became_of_the_requests():
    outcomes = [
        GOOD,
        replace(GOOD, recoveries_s=(1.0, 2.0, 3.0)),
        replace(GOOD, has_failed=True),
        replace(GOOD, num_ends=2, agrees=False),
        replace(GOOD, is_finished=False, num_ends=0, agrees=False),
        RequestOutcome(False, False, False, 0, False, ()),
    ]
    found = figures(outcomes, stale_refused=4)
    assert found == {
        "accepted": 6,
        "terminal": 4,
        "failed": 1,
        "lost": 1,
        "double_commits": 1,
        "stale_refused": 4,
        "recoveries": 3,
        "recovery_p50_s": 2.0,
        "recovery_p99_s": 3.0,
    }


@pytest.mark.parametrize(
    ("outcome", "problem"),
    [
        (replace(GOOD, is_finished=False, num_ends=0), "have ended"),
        (RequestOutcome(False, False, False, 0, False, ()), "lost"),
        (replace(GOOD, num_ends=2, agrees=False), "ended twice"),
        (replace(GOOD, agrees=False), "two ends"),
        (replace(GOOD, recoveries_s=(20.0,)), "recovery_p99_s is 20"),
    ],
)
def test_a_broken_promise_is_reported(outcome, problem):
    assert any(problem in broken for broken in broken_promises(figures([GOOD, outcome], 0)))


def test_kept_promises_are_not_reported_and_nothing_accepted_proves_nothing():
    assert broken_promises(figures([GOOD], 0)) == []
    assert broken_promises(figures([], 0)) == ["nothing was accepted"]
