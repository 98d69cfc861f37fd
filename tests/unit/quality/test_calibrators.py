"""What any calibrator promises: a monotone function into (0, 1) that does not depend on the order of its labels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quality.calibrators import ISOTONIC_FROM, cross_fitted, fit_calibrator, probabilities, probability
from schemas.calibration import CalibratorKind

scores = st.floats(0, 1, allow_nan=False)
labelled = st.lists(st.tuples(scores, st.booleans()), max_size=40)
#: Enough for the isotonic kind, with many ties.
many = st.lists(st.tuples(st.sampled_from([i / 16 for i in range(17)]), st.booleans()), min_size=20, max_size=40).map(
    lambda few: few * (ISOTONIC_FROM // len(few) + 1)
)
GRID = np.linspace(0, 1, 101)


@settings(max_examples=60, deadline=None)
@given(st.one_of(labelled, many))
def test_probabilities_are_monotone_and_inside_the_unit_interval(pairs):
    calibrator = fit_calibrator([s for s, _ in pairs], [g for _, g in pairs])
    found = probabilities(calibrator, GRID)
    assert (np.diff(found) >= -1e-12).all()
    assert (found > 0).all()
    assert (found < 1).all()
    assert np.allclose([probability(calibrator, float(score)) for score in GRID], found, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.one_of(labelled, many), st.randoms(use_true_random=False))
def test_the_order_of_labels_does_not_matter(pairs, random):
    shuffled = random.sample(pairs, len(pairs))
    one, other = (fit_calibrator([s for s, _ in each], [g for _, g in each]) for each in (pairs, shuffled))
    assert one == other


@settings(max_examples=30, deadline=None)
@given(many)
def test_a_weight_is_a_repetition(pairs):
    values, goods = np.array([s for s, _ in pairs]), np.array([g for _, g in pairs], float)
    twice = fit_calibrator(np.repeat(values, 2), np.repeat(goods, 2))
    same = fit_calibrator(np.tile(values, 2), np.tile(goods, 2), np.ones(2 * len(values)))
    assert np.allclose(probabilities(twice, GRID), probabilities(same, GRID), atol=1e-9)


def test_tied_scores_have_one_probability():
    values = np.repeat([0.2, 0.8], 150)
    goods = np.concatenate([np.tile([1, 0, 0], 50), np.tile([1, 1, 0], 50)])
    calibrator = fit_calibrator(values, goods)
    assert calibrator.kind is CalibratorKind.ISOTONIC
    assert probability(calibrator, 0.2) == pytest.approx(1 / 3, abs=0.02)
    assert probability(calibrator, 0.8) == pytest.approx(2 / 3, abs=0.02)


@pytest.mark.parametrize(("goods", "expected"), [([], 0.5), ([1] * 9, 10 / 11), ([0] * 9, 1 / 11)])
def test_empty_and_one_sided_labels(goods, expected):
    calibrator = fit_calibrator(np.linspace(0, 1, len(goods)), goods)
    assert probability(calibrator, 0.3) == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize(
    ("values", "goods", "weights"),
    [
        ([0.1], [2.0], None),
        ([float("nan")], [1], None),
        ([0.1, 0.2], [1], None),
        ([0.1], [1], [0.0]),
    ],
)
def test_impossible_labels_are_refused(values, goods, weights):
    with pytest.raises(ValueError, match=r"values|shape"):
        fit_calibrator(values, goods, weights)


def test_it_finds_the_truth():
    rng = np.random.default_rng(1)
    values = rng.random(4000)
    calibrator = fit_calibrator(values, rng.random(4000) < values**2)
    assert np.abs(probabilities(calibrator, GRID) - GRID**2).mean() < 0.05


def test_cross_fitting_predicts_no_label_from_itself():
    rng = np.random.default_rng(2)
    values, noise = rng.random(400), rng.random(400) < 0.5
    found = cross_fitted(values, noise)
    assert np.corrcoef(found, noise)[0, 1] < 0.15
