"""Which threshold holds: a stated one, a stated risk's, the calibration's, or the configured one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.drift import DriftState
from schemas.requests import ConfidenceRule
from schemas.results import ConfidenceReport
from tests.samples import a_calibration
from workers.edge.calibrated_rule import KEEP_NOTHING, calibrated

CONFIGURED = ConfidenceRule(threshold=0.9, weights={"max_prob": 0.4, "margin": 0.6})
RAISED = DriftState(threshold=KEEP_NOTHING, audit_share=0.3)


@pytest.mark.parametrize(
    ("stated", "threshold", "governed"),
    [
        ({}, 0.8, True),
        ({"threshold": 0.3}, 0.3, False),
        ({"max_risk": 0.02}, 0.95, False),
        ({"max_risk": 0.3}, 0.5, False),
        ({"max_risk": 0.001}, KEEP_NOTHING, False),
    ],
)
def test_what_a_request_states_comes_before_the_calibration(stated, threshold, governed):
    rule = CONFIGURED.model_copy(update={**stated, "stated": tuple(stated)})
    found = calibrated(rule, a_calibration(), None, 0.02)
    assert (found.rule.threshold, found.governed) == (threshold, governed)
    assert found.rule.weights == {"max_prob": 1.0}
    assert found.keeps_nothing == (threshold == KEEP_NOTHING)


def test_without_a_calibration_the_configured_threshold_holds_and_no_risk_is_promised():
    assert calibrated(CONFIGURED, None, None, 0.02).rule == CONFIGURED
    asked = CONFIGURED.model_copy(update={"max_risk": 0.5, "stated": ("max_risk",)})
    assert calibrated(asked, None, None, 0.02).keeps_nothing


@pytest.mark.parametrize(
    "other",
    [
        {"strategy": "margin", "stated": ("strategy",)},
        {"weights": {"margin": 1.0}, "stated": ("weights",)},
        {"quantile": 0.5, "stated": ("quantile",)},
    ],
)
def test_a_calibration_says_nothing_about_other_scores(other):
    rule = CONFIGURED.model_copy(update=other)
    found = calibrated(rule, a_calibration(), None, 0.02)
    assert (found.rule, found.calibration, found.governed) == (rule, None, False)


def test_a_calibration_that_keeps_nothing():
    assert calibrated(CONFIGURED, a_calibration(threshold=None), None, 0.02).keeps_nothing


@pytest.mark.parametrize("stated", [{}, {"max_risk": 0.3}])
def test_drift_raises_what_the_calibration_decides(stated):
    rule = CONFIGURED.model_copy(update={**stated, "stated": tuple(stated)})
    found = calibrated(rule, a_calibration(), RAISED, 0.02)
    assert found.keeps_nothing
    assert found.audit_share == 0.3


def test_drift_raises_no_threshold_that_the_request_states():
    rule = CONFIGURED.model_copy(update={"threshold": 0.1, "stated": ("threshold",)})
    assert calibrated(rule, a_calibration(), RAISED, 0.02).rule.threshold == 0.1


@given(st.floats(0, 1), st.floats(0, 1))
def test_a_higher_risk_never_means_a_higher_threshold(one, other):
    low, high = sorted((one, other))
    strict, lax = (
        calibrated(
            CONFIGURED.model_copy(update={"max_risk": risk, "stated": ("max_risk",)}), a_calibration(), None, 0.0
        )
        for risk in (low, high)
    )
    assert strict.rule.threshold >= lax.rule.threshold


def test_a_report_names_the_calibration_and_the_probability():
    report = ConfidenceReport(value=0.5, threshold=0.8, strategy="ensemble", sure=False)
    found = calibrated(CONFIGURED, a_calibration(version=7), None, 0.02).completed(report)
    assert (found.calibration, found.probability) == (7, pytest.approx(0.5))
    assert calibrated(CONFIGURED, None, None, 0.0).completed(report) == report
