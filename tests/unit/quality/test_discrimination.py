"""Whether scores can tell, and whether probabilities mean what they say."""

import numpy as np
import pytest

from quality.discrimination import calibration_error, can_tell, chance_error, discrimination, reliability, wilson
from quality.ensemble import fit_weights


def test_auroc_counts_pairs():
    found = discrimination([0.1, 0.4, 0.4, 0.9], [False, True, False, True])
    assert found is not None
    assert found.auroc == pytest.approx((1 + 0.5 + 1 + 1) / 4)
    assert discrimination([0.5, 0.6], [True, True]) is None
    assert not can_tell(None)


def test_noise_cannot_tell_and_a_signal_can():
    rng = np.random.default_rng(7)
    scores = rng.random(300)
    assert can_tell(discrimination(scores, rng.random(300) < scores))
    mistaken = sum(can_tell(discrimination(rng.random(200), rng.random(200) < 0.7)) for _ in range(400))
    assert mistaken / 400 <= 0.025 + 0.025


def test_the_interval_holds_as_often_as_promised():
    rng, held = np.random.default_rng(8), 0
    for _ in range(400):
        good, bad = rng.normal(1, 1, 80), rng.normal(0, 1, 60)
        found = discrimination(np.append(good, bad), np.append(np.ones(80), np.zeros(60)).astype(bool))
        held += found is not None and found.low <= 0.76025 <= found.high  # the normal's area at a distance of 1
    assert held / 400 >= 0.95 - 0.035


def test_calibration_error_and_what_chance_adds():
    promised, good = np.repeat([0.25, 0.75], 40), np.tile([1, 0, 0, 0], 20)
    assert calibration_error(promised, good) == pytest.approx(0.25)
    assert calibration_error([], []) == 0.0
    rng = np.random.default_rng(9)
    chance = rng.random(300)
    errors = [calibration_error(chance, rng.random(300) < chance) for _ in range(100)]
    assert chance_error(chance) == pytest.approx(np.mean(errors), abs=0.01)


def test_bins_have_counts_and_intervals():
    first, last = reliability([0.05, 0.95, 1.0], [0, 1, 1])
    assert (first.count, last.count, last.good) == (1, 2, 1.0)
    assert first.good_low == 0.0 < first.good_high < 1.0
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)


def _members(rng, num_labels):
    truth = rng.random(num_labels)
    good = rng.random(num_labels) < truth
    noisy = np.clip(truth[:, None] + rng.normal(0, [0.15, 0.15, 5.0], (num_labels, 3)), 0, 1)
    return noisy, good


def test_an_ensemble_leaves_noise_out_and_uses_both_signals():
    weights = fit_weights(*_members(np.random.default_rng(10), 600))
    assert weights.sum() == pytest.approx(1)
    assert (weights >= 0).all()
    assert weights[2] < 0.1
    assert min(weights[:2]) > 0.2


def test_the_order_of_rows_does_not_matter():
    rng = np.random.default_rng(11)
    members, good = _members(rng, 120)
    order = rng.permutation(120)
    assert np.allclose(fit_weights(members, good), fit_weights(members[order], good[order]))


@pytest.mark.parametrize("good", [[], [1] * 20, [1, 0]])
def test_nothing_to_learn_means_equal_weights(good):
    assert fit_weights(np.full((len(good), 4), 0.5), good).tolist() == [0.25] * 4


def test_no_table_of_members_is_refused():
    with pytest.raises(ValueError, match="no table"):
        fit_weights([0.5, 0.6], [1, 0])
