"""Thresholds for a risk, a budget and a price; the promise by simulation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quality.bounds import clopper_pearson
from quality.thresholds import (
    Costs,
    lowest_threshold,
    risk_frontier,
    thinned,
    threshold_for_cloud_share,
    threshold_for_cost,
    threshold_for_gap,
)
from schemas.calibration import Prices

drafts = st.lists(st.tuples(st.sampled_from([i / 10 for i in range(11)]), st.booleans()), min_size=1, max_size=60)


@settings(max_examples=80, deadline=None)
@given(drafts, st.floats(0, 0.6))
def test_the_frontier_is_what_counting_gives(pairs, max_risk):
    scores, worse = np.array([s for s, _ in pairs]), np.array([w for _, w in pairs])
    frontier = risk_frontier(scores, worse, 0.9)
    assert [point.threshold for point in frontier] == sorted(set(scores.tolist()), reverse=True)
    bounds = [point.bound for point in frontier]
    assert bounds == sorted(bounds)
    for point in frontier:
        kept = scores >= point.threshold
        assert point.kept == pytest.approx(kept.mean())
        assert point.risk == pytest.approx((kept & worse).mean())
        assert point.bound == pytest.approx(clopper_pearson(int((kept & worse).sum()), len(pairs), 0.9))
    assert lowest_threshold(thinned(frontier), max_risk) == lowest_threshold(frontier, max_risk)


def test_the_promise_holds_in_as_many_samples_as_said():
    rng, broken = np.random.default_rng(6), 0
    grid = np.linspace(0, 1, 2001)
    # P(kept and worse) at threshold t, for uniform scores and P(worse | score s) = (1 - s) ** 2: the integral from t.
    true_risk = (1 - grid) ** 3 / 3
    for _ in range(600):
        scores = rng.random(200)
        threshold = lowest_threshold(risk_frontier(scores, rng.random(200) < (1 - scores) ** 2, 0.9), 0.05)
        if threshold is not None:
            broken += np.interp(threshold, grid, true_risk) > 0.05
    assert broken / 600 <= 0.1 + 0.03


def test_inverse_probabilities_make_up_for_uneven_draws():
    scores = np.array([0.9] * 10 + [0.1] * 90)
    worse = np.array([True] * 2 + [False] * 8 + [True] * 90)
    weights = np.array([50.0] * 10 + [1.0] * 90)
    first, *_ = risk_frontier(scores, worse, 0.9, weights=weights)
    assert first.kept == pytest.approx(500 / 590)
    assert first.risk == pytest.approx(100 / 590)
    assert first.bound > first.risk


def test_costs_are_shares_of_the_cloud_alone():
    frontier = risk_frontier([0.9, 0.5], [False, False], 0.9, Costs(cloud=[30, 10], edge=[2, 2]))
    assert [point.cost_saved for point in frontier] == pytest.approx([26 / 40, 36 / 40])


@pytest.mark.parametrize(("share", "threshold"), [(0.0, 0.1), (0.25, 0.2), (0.3, 0.2), (0.5, 0.3), (1.0, None)])
def test_a_budget_of_the_cloud(share, threshold):
    assert threshold_for_cloud_share([0.1, 0.2, 0.3, 0.4], share) == threshold


def test_a_price_decides():
    scores, worse = [0.9, 0.8, 0.2], [0.0, 0.1, 0.9]
    cheap = Prices(edge=0.0, cloud=1.0, worse=5.0)
    assert threshold_for_cost(scores, worse, Costs(cloud=[1, 1, 1]), cheap) == 0.8
    assert threshold_for_cost(scores, worse, Costs(cloud=[1, 1, 1]), cheap.model_copy(update={"worse": 1e9})) == 0.9
    assert threshold_for_cost(scores, [1, 1, 1], Costs(cloud=[1, 1, 1]), cheap) is None


def test_a_share_of_the_gap():
    scores = [0.9, 0.7, 0.5, 0.3]
    assert threshold_for_gap(scores, [1, 1, 0, 0], [1, 1, 1, 1], 0.5) == 0.5
    assert threshold_for_gap(scores, [0, 0, 0, 0], [1, 1, 1, 1], 1.0) is None
    assert threshold_for_gap([], [], []) is None


def test_no_labels_promise_nothing():
    assert risk_frontier([], [], 0.9) == ()
    assert lowest_threshold((), 0.5) is None
