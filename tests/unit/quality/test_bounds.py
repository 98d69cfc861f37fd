"""Bounds against published values, and how often they hold by simulation."""

import numpy as np
import pytest

from quality.bounds import clopper_pearson, clopper_pearson_bounds, weighted_share_upper, weighted_upper


# One-sided, from the beta distribution's quantiles (R: qbeta(certainty, bad + 1, of - bad)).
@pytest.mark.parametrize(
    ("bad", "of", "certainty", "bound"),
    [
        (0, 100, 0.9, 1 - 0.1 ** (1 / 100)),
        (0, 1, 0.95, 0.95),
        (1, 10, 0.95, 0.394163),
        (3, 10, 0.95, 0.606624),
        (5, 100, 0.9, 0.090771),
        (10, 10, 0.9, 1.0),
        (0, 0, 0.9, 1.0),
    ],
)
def test_clopper_pearson(bad, of, certainty, bound):
    assert clopper_pearson(bad, of, certainty) == pytest.approx(bound, abs=1e-5)


@pytest.mark.parametrize(("bad", "of", "certainty"), [(-1, 10, 0.9), (11, 10, 0.9), (1, 10, 1.0)])
def test_impossible_counts_are_refused(bad, of, certainty):
    with pytest.raises(ValueError, match="no bound"):
        clopper_pearson(bad, of, certainty)


@pytest.mark.parametrize(("of", "risk"), [(50, 0.05), (300, 0.03), (300, 0.2)])
def test_clopper_pearson_holds_as_often_as_promised(of, risk):
    bad = np.random.default_rng(3).binomial(of, risk, 4000)
    assert (clopper_pearson_bounds(bad, of, 0.9) >= risk).mean() >= 0.9 - 0.015


@pytest.mark.parametrize("drawn", [0.02, 0.3, 1.0])
def test_weighted_bounds_hold_as_often_as_promised(drawn):
    rng, risk, held = np.random.default_rng(4), 0.04, 0
    for _ in range(150):
        bad = rng.random(2000) < risk
        values = bad * (rng.random(2000) < drawn) / drawn
        held += weighted_upper(values, 1 / drawn, 0.9) >= risk
    assert held / 150 >= 0.9 - 0.06


def test_mixed_draws_bound_the_share_of_all():
    rng, held = np.random.default_rng(5), 0
    for _ in range(150):
        kept = rng.random(3000) < 0.6
        bad = rng.random(3000) < np.where(kept, 0.03, 0.5)
        drawn = np.where(kept, 0.2, 1.0)
        seen = rng.random(3000) < drawn
        held += weighted_share_upper((bad & kept)[seen], 1 / drawn[seen], 0.9) >= 0.018
    assert held / 150 >= 0.9 - 0.06


def test_more_labels_tighten_the_bound():
    few, more = weighted_upper(np.zeros(50), 10.0, 0.9), weighted_upper(np.zeros(5000), 10.0, 0.9)
    assert more < few / 10
    assert weighted_upper([], 10.0, 0.9) == pytest.approx(10.0)
