"""Calibrations: what a confidence score means for one pair of models, and which threshold keeps a promised risk.

A calibration is one JSON document with everything that is needed to judge and to reproduce it. It contains scores and
labels, never text.
"""

import hashlib
import json
from enum import StrEnum
from typing import Literal, Self

from pydantic import Field, model_validator

from schemas.message import Wire
from schemas.requests import Pooling, Probability, TrafficClass, Weight


class CalibratorKind(StrEnum):
    """How a score becomes a probability."""

    #: Piecewise linear between `knots` (isotonic regression, pool adjacent violators).
    ISOTONIC = "isotonic"
    #: 1 / (1 + exp(-(slope * log(s / (1 - s)) + intercept))) (Platt, 1999); s is the score within [1e-6, 1 - 1e-6].
    LOGISTIC = "logistic"


class Calibrator(Wire):
    """From a score in [0, 1] to the probability that a draft is as good as the cloud's answer. Non-decreasing."""

    kind: CalibratorKind
    #: Isotonic: (score, probability), by score; constant before the first and after the last.
    knots: tuple[tuple[float, float], ...] = ()
    #: Logistic; the slope is not negative.
    slope: float = 0.0
    intercept: float = 0.0
    #: Labels that it was fitted on.
    labels: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _is_a_function(self) -> Self:
        if self.kind is CalibratorKind.ISOTONIC:
            if not self.knots:
                raise ValueError("an isotonic calibrator has at least one knot")
            scores, probabilities = zip(*self.knots, strict=True)
            if list(scores) != sorted(set(scores)) or list(probabilities) != sorted(probabilities):
                raise ValueError("the knots must increase in score and not decrease in probability")
            if not all(0.0 <= probability <= 1.0 for probability in probabilities):
                raise ValueError("probabilities are in [0, 1]")
        elif self.slope < 0:
            raise ValueError("the slope must not be negative")
        return self


class FrontierPoint(Wire):
    """What a threshold does, as estimated from the labels. Shares are of all answers, escalated ones included."""

    threshold: float
    #: Share of drafts that are kept.
    kept: float
    #: Share of answers that are drafts worse than the cloud's answer (the joint risk), as observed.
    risk: float
    #: The upper confidence bound of `risk`, at the calibration's certainty.
    bound: float
    #: Share of the cost of `cloud_only` that is saved; None where costs are unknown.
    cost_saved: float | None = None


class Goal(Wire):
    """What the threshold was chosen for. Exactly one of `max_risk`, `cloud_share` and `prices`."""

    #: The highest share of answers that may be drafts worse than the cloud's answer.
    max_risk: Probability | None = None
    #: The probability with which the promise holds, over the draw of the labels.
    certainty: float = Field(0.9, gt=0.0, lt=1.0)
    #: The share of drafts that may be escalated.
    cloud_share: Probability | None = None
    #: The cost of a worse answer and of each tier; see `firstdraft calibrate --cost`.
    prices: "Prices | None" = None


class Prices(Wire):
    """Prices of each tier, per token of an answer or per second of work, and of an answer that is worse."""

    per: Literal["token", "second"] = "token"
    edge: Weight
    cloud: Weight
    #: The price of one kept draft that is worse than the cloud's answer, in the same unit.
    worse: Weight


class Label(Wire):
    """One draft's label. Figures only."""

    #: The draft's score by the calibration's rule.
    score: Probability
    #: The value of each of the rule's members.
    parts: dict[str, float] = {}
    #: Whether the draft is worse than what the cloud would have written.
    worse: bool
    #: What the draft was worth.
    worth: Probability
    #: The probability with which this draft was drawn for labelling; its inverse is the label's weight.
    drawn: float = Field(1.0, gt=0.0, le=1.0)
    #: What the label comes from: expected, verified, judged, or the name of a judge.
    source: str = "expected"
    #: Whether the draft was kept in service (an audit); None for labels of `firstdraft calibrate`.
    kept: bool | None = None
    #: The version of the calibration that decided about the draft; 0 for labels of `firstdraft calibrate`.
    version: int = Field(0, ge=0)
    #: Costs of this answer by each tier in the unit of `Prices`, for the table; None where unknown.
    edge_cost: float | None = None
    cloud_cost: float | None = None
    #: Seconds since the epoch.
    at_s: float = 0.0


class Scope(Wire):
    """What a calibration applies to."""

    edge_model: str
    cloud_model: str
    #: The confidence strategy, by its name in requests (`ensemble` for any weights).
    strategy: str
    #: None: requests of every class that has no calibration of its own.
    traffic_class: TrafficClass | None = None

    @property
    def digest(self) -> str:
        """A short name for Redis keys: the same for equal scopes."""
        fields = [self.edge_model, self.cloud_model, self.strategy, self.traffic_class]
        return hashlib.sha256(json.dumps(fields).encode()).hexdigest()[:16]


class Calibration(Wire):
    """A calibration as it is stored and exported."""

    #: Of this document's form.
    format: Literal[1] = 1
    #: Assigned when it is stored, from 1; 0 before.
    version: int = Field(0, ge=0)
    scope: Scope
    #: The rule that the scores were computed by, threshold excluded.
    weights: dict[str, Weight] = {}
    pooling: Pooling = Pooling.MEAN
    quantile: float = Field(0.1, gt=0.0, lt=1.0)
    goal: Goal
    #: A draft with at least this score is kept; None keeps nothing.
    threshold: float | None
    calibrator: Calibrator
    #: From the strictest threshold to the laxest; `bound` does not decrease.
    frontier: tuple[FrontierPoint, ...]
    #: Whether the scores tell good drafts from worse ones: the area under the ROC curve with its interval, None where
    #: all labels are the same.
    auroc: float | None = None
    auroc_low: float | None = None
    auroc_high: float | None = None
    #: Expected calibration error, out of sample (cross-fitted).
    ece: float | None = None
    labels: tuple[Label, ...] = ()
    #: How labels were decided: the checkers, the similarity rule, the judge.
    labelled_by: str = ""
    #: How audits decide in service, where nothing is expected: a similarity rule.
    audited_by: str = "equal"
    #: The upper bound, at the certainty, of the share of answers that audits would call worse at the threshold. It is
    #: what the audits are held to; above the promised risk where the rule calls answers worse that are only different.
    audit_risk: float | None = None
    #: Why it was made: calibrated, refitted, or an operator's note.
    reason: str = "calibrated"
    #: Seconds since the epoch.
    created_at_s: float = 0.0
    #: Version of Firstdraft, and what else is needed to reproduce it (seed, prompts' digest).
    made_with: dict[str, str] = {}


class HistoryEntry(Wire):
    """One change of which calibration is active."""

    version: int
    scope: Scope
    threshold: float | None
    #: calibrated, refitted, rolled back to a version, or an operator's note.
    reason: str
    #: Labels that the calibration was made from.
    labels: int
    #: Seconds since the epoch, by Redis's clock.
    at_s: float


class Tally(Wire):
    """Drafts that a version of a calibration decided since the last tally of the same worker."""

    version: int = Field(0, ge=0)
    kept: int = 0
    escalated: int = 0
    #: Escalated before they were complete, which cannot be labelled.
    stopped_early: int = 0


Goal.model_rebuild()
