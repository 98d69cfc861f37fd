"""The monitor: it is quiet while the promise holds, says so when it is broken, and comes back only with labels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quality.drift import (
    FIRST_LOOK,
    KEEP_NOTHING,
    AuditPlan,
    promised_risk,
    refit,
    update,
)
from schemas import wire
from schemas.calibration import Goal, Label, Tally
from schemas.drift import DriftKind, DriftState
from tests.samples import a_calibration

PLAN = AuditPlan()


def an_audit(worse, drawn=0.02, score=0.9):
    return Label(score=score, worse=worse, worth=float(not worse), drawn=drawn, kept=True)


def an_escalated(worse, score=0.5):
    return Label(score=score, worse=worse, worth=float(not worse), kept=False)


def after(state, *, kept=0, escalated=0, labels=(), calibration=None, plan=PLAN):
    tally = Tally(kept=kept, escalated=escalated)
    return update(state, calibration or a_calibration(), plan, tally=tally, labels=labels, now_s=9.0)


def run(rng, answers, kept_share, worse_share, *, state=None, good_below=0.5):
    """So many answers, one at a time, whose kept drafts are worse with this probability. Where it stops, and events."""
    seen = []
    for number in range(answers):
        share = PLAN.share if state is None else state.audit_share
        kept = rng.random() < kept_share
        labels = []
        if not kept:
            labels = [an_escalated(rng.random() >= good_below)]
        elif rng.random() < share:
            labels = [an_audit(rng.random() < worse_share, share)]
        state, events = after(state, kept=int(kept), escalated=int(not kept), labels=labels)
        seen += [(number, event.kind) for event in events]
        if state.broken_at_s is not None:
            break
    return state, seen


def test_a_kept_promise_is_seldom_called_broken_and_little_is_audited():
    rng = np.random.default_rng(1)
    broken, audited, kept = 0, 0, 0
    for _ in range(12):
        state, _events = run(rng, 3_000, 0.5, 0.06)  # a joint risk of 3 %
        broken += state.broken_at_s is not None
        audited, kept = audited + state.audits, kept + state.kept
    assert broken <= 2
    assert audited / kept < 0.1


def test_a_broken_promise_is_found_within_some_hundred_answers():
    rng, found = np.random.default_rng(2), []
    for _ in range(12):
        state, seen = run(rng, 3_000, 0.5, 0.6, good_below=0.2)  # a joint risk of 30 %
        assert seen[-1][1] is DriftKind.RAISED
        assert (state.threshold, state.broken_at_s) == (KEEP_NOTHING, 9.0)
        found.append(seen[-1][0])
    assert np.median(found) < 400


def test_a_worse_audit_begins_a_burst_that_fine_ones_end():
    state, events = after(None, kept=10, escalated=10, labels=[an_audit(worse=True)])
    assert (state.audit_share, events) == (PLAN.burst_share, ())
    state, _ = after(state, kept=10, escalated=10, labels=[an_audit(worse=False)] * 10)
    assert state.audit_share == PLAN.share


def test_escalated_drafts_that_are_worse_than_calibrated_warn_once():
    calibration = a_calibration()
    state, kinds = None, []
    for _ in range(60):
        state, events = after(state, kept=1, escalated=1, labels=[an_escalated(worse=True, score=0.7)])
        kinds += [event.kind for event in events]
    assert kinds == [DriftKind.WARNED]
    assert promised_risk(calibration) == 0.05


def test_nothing_happens_where_nothing_arrives():
    state, _ = after(None, kept=5, escalated=5, labels=[an_audit(worse=False)])
    assert after(state) == (state, ())


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30), st.lists(st.booleans(), max_size=4)), max_size=15),
    st.integers(0, 14),
)
def test_more_worse_labels_never_end_in_a_lower_threshold(steps, place):
    def ends(changed):
        state = None
        for number, (kept, escalated, worse) in enumerate(steps):
            audits = [an_audit(bad or (changed and number == place)) for bad in worse]
            state, _ = after(state, kept=kept + len(worse), escalated=escalated, labels=audits)
        return 0.0 if state is None or state.threshold is None else state.threshold

    assert ends(changed=True) >= ends(changed=False)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 50), st.integers(0, 50), st.lists(st.booleans(), max_size=5))
def test_a_state_survives_redis(kept, escalated, worse):
    state, _ = after(None, kept=kept, escalated=escalated, labels=[an_audit(bad) for bad in worse])
    assert wire.decode(DriftState, wire.encode(state)) == state
    assert state.risk_bound is None or state.risk_bound >= (state.risk or 0.0)


def test_labels_since_the_break_are_counted_and_looks_double():
    state = DriftState(audit_share=0.02, broken_at_s=1.0, threshold=KEEP_NOTHING)
    due = []
    for _ in range(5):
        labels = [an_escalated(worse=False)] * 90 + [an_audit(worse=True)] * 10
        state, events = after(state, escalated=100, labels=labels)
        due += [state.labels_since for event in events if event.kind is DriftKind.REFIT_DUE]
    assert due == [180, 270, 450]
    assert state.threshold == KEEP_NOTHING


@pytest.mark.parametrize(("num_worse", "kept"), [(0, True), (FIRST_LOOK, False)])
def test_a_new_calibration_needs_labels_that_allow_it(num_worse, kept):
    labels = [an_escalated(worse=number < num_worse, score=number / FIRST_LOOK) for number in range(FIRST_LOOK)]
    found = refit(a_calibration(), [*labels, an_audit(worse=True, score=0.99)], look=1)
    assert (found is not None) == kept
    if found is not None:
        assert (found.threshold, found.audit_risk, found.version) == (0.0, 0.05, 0)
        assert found.scope == a_calibration().scope
        assert len(found.labels) == FIRST_LOOK
    assert refit(a_calibration(), [], look=1) is None


def test_later_looks_are_more_careful():
    labels = [an_escalated(worse=number in {3, 9}, score=number / 200) for number in range(200)]
    thresholds = [refit(a_calibration(), labels, look).threshold for look in (1, 4, 8)]
    assert thresholds == sorted(thresholds)


@pytest.mark.parametrize(
    ("changes", "promise"),
    [
        ({}, 0.05),
        ({"audit_risk": 0.2}, 0.2),
        ({"goal": Goal(cloud_share=0.5), "threshold": 0.5}, 0.25),
        ({"goal": Goal(cloud_share=0.0), "threshold": None}, 0.0),
    ],
)
def test_what_audits_are_held_to(changes, promise):
    assert promised_risk(a_calibration(**changes)) == promise
