"""Fitting a calibration to answers."""

import math
import random

import pytest

from config.settings import read_settings
from firstdraft.local.calibrating import (
    Answered,
    CannotCalibrate,
    Choice,
    agreement,
    check_choice,
    described,
    fit,
    members,
    needs_judge,
    point_at,
)
from quality.bounds import clopper_pearson
from quality.labels import UnknownRule
from schemas.drafts import TokenFigures
from schemas.requests import ConfidenceRule
from workers.edge.confidence import assess

SETTINGS = read_settings().edge.confidence


def answers(number=400, *, seed=1):
    """Drafts that are the better the surer they are."""
    rng = random.Random(seed)
    found = []
    for place in range(number):
        sure = rng.random()
        draft = "right" if rng.random() < sure**0.3 else "wrong"
        parts = {name: min(1.0, sure * rng.uniform(0.99, 1)) for name in members(SETTINGS)}
        found.append(Answered(f"prompt {place}", draft, "right", parts, (4, 5), (0.1, 1.0)))
    return found


def a_choice(**changes):
    return Choice("small", "large", None, **{"strategy": "ensemble", "audited_by": "equal", **changes})


@pytest.mark.parametrize(
    "goal",
    [
        {"max_risk": 0.05},
        *({"cloud_share": share / 10} for share in range(1, 10)),
        *({"prices": {"edge": 0.0, "cloud": 1.0, "worse": price}} for price in (3.0, 10.0, 40.0)),
    ],
)
def test_what_is_said_of_the_threshold_is_what_it_does(goal):
    calibration = fit(answers(), a_choice(**goal), SETTINGS)
    kept = [label for label in calibration.labels if label.score >= calibration.threshold]
    worse = sum(label.worse for label in kept)
    at = point_at(calibration, calibration.threshold)
    assert at.kept == pytest.approx(len(kept) / 400)
    assert at.risk == pytest.approx(worse / 400)
    assert at.bound == pytest.approx(clopper_pearson(worse, 400, 0.9))
    assert f"keeps {at.kept:.0%} of drafts" in described(calibration)
    bounds = [point.bound for point in calibration.frontier]
    assert bounds == sorted(bounds)


@pytest.mark.parametrize("strategy", ["ensemble", "fitted", "margin"])
def test_a_score_is_the_same_in_service(strategy):
    rng = random.Random(0)
    everything = ConfidenceRule(strategy="ensemble", threshold=0.0, weights=dict.fromkeys(members(SETTINGS), 1.0))
    figures = [
        TokenFigures(**{name: tuple(rng.random() for _ in range(7)) for name in TokenFigures.model_fields})
        for _ in range(200)
    ]
    answered = [
        Answered(
            str(place),
            "right" if rng.random() < 0.7 else "wrong",
            "right",
            assess(each, everything).parts,
            (1, 1),
            (1, 1),
        )
        for place, each in enumerate(figures)
    ]
    calibration = fit(answered, a_choice(strategy=strategy, cloud_share=0.5), SETTINGS)
    rule = ConfidenceRule(
        strategy=calibration.scope.strategy,
        threshold=0.0,
        weights=calibration.weights,
        pooling=calibration.pooling,
        quantile=calibration.quantile,
    )
    assert [label.score for label in calibration.labels] == [assess(each, rule).value for each in figures]


def test_where_the_cloud_alone_is_cheapest_nothing_is_kept():
    calibration = fit(answers(), a_choice(cloud_share=1.0), SETTINGS)
    assert calibration.threshold is None
    assert "the cloud alone is the best choice" in described(calibration)


def test_a_promise_that_no_threshold_keeps():
    calibration = fit(answers(40), a_choice(max_risk=0.001), SETTINGS)
    assert calibration.threshold is None
    assert "no threshold keeps the promise" in described(calibration)
    assert calibration.audit_risk is None


def test_too_few_labels_are_refused():
    with pytest.raises(CannotCalibrate, match="there are 29 labels"):
        fit(answers(29), a_choice(max_risk=0.05), SETTINGS)


def test_what_cannot_be_fitted_is_refused_before_anything_is_asked():
    for strategy in ("ensemble", "fitted", "margin"):
        check_choice(strategy, "overlap:0.8", "cloud", SETTINGS)
    with pytest.raises(CannotCalibrate, match="'guess' must be fitted, ensemble, or one of max_prob"):
        check_choice("guess", "equal", None, SETTINGS)
    with pytest.raises(UnknownRule, match="similarity rule"):
        check_choice("ensemble", "same", None, SETTINGS)
    with pytest.raises(UnknownRule, match="judge 'oracle'"):
        check_choice("ensemble", "equal", "oracle", SETTINGS)


def test_only_what_differs_and_is_not_expected_needs_a_judge():
    assert needs_judge("Sydney", "Canberra", None)
    assert not needs_judge("canberra.", "Canberra", None)
    assert not needs_judge("Sydney", "Canberra", "Canberra")


def test_the_cloud_agrees_by_the_mass_of_yes_against_no():
    first = [("Yes", math.log(0.4)), (" yes", math.log(0.2)), ("NO", math.log(0.2)), ("Maybe", math.log(0.2))]
    assert agreement(first) == pytest.approx(0.75)
    assert agreement([("Maybe", 0.0)]) == agreement([]) == 0.5
