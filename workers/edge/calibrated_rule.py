"""Which threshold a request's draft is judged by, given the active calibration and what watching it has found. Pure.

A request may state a threshold, which no calibration replaces; or a risk, for which the calibration has a threshold;
or neither: then the calibration's own threshold holds, and the configured one without a calibration.
"""

from dataclasses import dataclass

from quality.calibrators import probability
from quality.thresholds import lowest_threshold
from schemas.calibration import Calibration
from schemas.drift import DriftState
from schemas.requests import ConfidenceRule
from schemas.results import ConfidenceReport

#: A threshold that no confidence reaches.
KEEP_NOTHING = 2.0
#: The fields by which a request says how scores are computed.
_FORM = ("weights", "pooling", "quantile")


@dataclass(frozen=True)
class CalibratedRule:
    """The rule that a draft is judged by."""

    rule: ConfidenceRule
    #: None where no calibration applies.
    calibration: Calibration | None = None
    #: Whether the calibration's own promise holds for the request, so that its draft counts for watching it.
    governed: bool = False
    #: The probability with which the draft is audited if it is kept.
    audit_share: float = 0.0

    @property
    def keeps_nothing(self) -> bool:
        """Whether no draft can be kept, however confident."""
        return self.rule.threshold > 1.0

    def completed(self, report: ConfidenceReport) -> ConfidenceReport:
        """The report with what the calibration knows about its value."""
        if self.calibration is None:
            return report
        likely = probability(self.calibration.calibrator, report.value)
        return report.model_copy(update={"probability": likely, "calibration": self.calibration.version})


def applies(calibration: Calibration, rule: ConfidenceRule) -> bool:
    """Whether the rule computes the scores that the calibration is about."""
    stated = [field for field in _FORM if field in rule.stated]
    return rule.strategy == calibration.scope.strategy and all(
        getattr(rule, field) == getattr(calibration, field) for field in stated
    )


def calibrated(
    rule: ConfidenceRule, calibration: Calibration | None, drift: DriftState | None, audit_share: float
) -> CalibratedRule:
    """The rule with its threshold decided. `audit_share`: the configured one, which `drift` may raise."""
    if calibration is None or not applies(calibration, rule):
        # A risk can only be promised by a calibration.
        uncalibrated = rule if rule.max_risk is None else rule.model_copy(update={"threshold": KEEP_NOTHING})
        return CalibratedRule(uncalibrated)
    form = {field: getattr(calibration, field) for field in _FORM}
    if "threshold" in rule.stated:
        return CalibratedRule(rule.model_copy(update=form), calibration)
    raised = None if drift is None else drift.threshold
    chosen = calibration.threshold if rule.max_risk is None else lowest_threshold(calibration.frontier, rule.max_risk)
    threshold = max(KEEP_NOTHING if chosen is None else chosen, raised or 0.0)
    return CalibratedRule(
        rule.model_copy(update={**form, "threshold": threshold}),
        calibration,
        governed=rule.max_risk is None,
        audit_share=audit_share if drift is None else drift.audit_share,
    )
