"""What the fault runs make of the stories of requests."""

from dataclasses import replace

import pytest

from experiments.chaos.ledger import Story, broken_promises, figures

GOOD = Story(is_known=True, is_finished=True, has_failed=False, num_ends=1, agrees=True, recoveries_s=())


def test_figures_count_what_became_of_the_requests():
    stories = [
        GOOD,
        replace(GOOD, recoveries_s=(1.0, 3.0)),
        replace(GOOD, has_failed=True),
        replace(GOOD, num_ends=2, agrees=False),
        replace(GOOD, is_finished=False, num_ends=0, agrees=False),
        Story(False, False, False, 0, False, ()),
    ]
    found = figures(stories, stale_refused=4, more_recoveries_s=[2.0])
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
    ("story", "told"),
    [
        (replace(GOOD, is_finished=False, num_ends=0), "have ended"),
        (Story(False, False, False, 0, False, ()), "lost"),
        (replace(GOOD, num_ends=2, agrees=False), "ended twice"),
        (replace(GOOD, agrees=False), "two ends"),
        (replace(GOOD, recoveries_s=(20.0,)), "recovery_p99_s is 20"),
    ],
)
def test_a_promise_that_was_not_kept_is_told(story, told):
    assert any(told in promise for promise in broken_promises(figures([GOOD, story], 0)))


def test_kept_promises_are_not_told_and_nothing_accepted_proves_nothing():
    assert broken_promises(figures([GOOD], 0)) == []
    assert broken_promises(figures([], 0)) == ["nothing was accepted"]
