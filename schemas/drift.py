"""What watching a calibration in service has found: the drift monitor's state, and what it does about it."""

from enum import StrEnum

from pydantic import Field

from schemas.message import Wire
from schemas.requests import Probability


class DriftKind(StrEnum):
    """What the monitor did."""

    #: Signs of a change: more drafts are audited for a while.
    WARNED = "warned"
    #: The promise is broken: no draft is kept until there is a new calibration.
    RAISED = "raised"
    #: Enough labels to make a calibration from them.
    REFIT_DUE = "refit_due"


class DriftEvent(Wire):
    """Something that the monitor did, with figures for people to read."""

    kind: DriftKind
    message: str


class DriftState(Wire):
    """The monitor's state. Sizes are bounded; it is replaced when another calibration becomes active."""

    #: A threshold that replaces a lower one of the calibration; above 1 keeps nothing. None: the calibration's own.
    threshold: float | None = None
    #: The share of kept drafts that are to be audited now.
    audit_share: Probability
    #: Since the calibration became active: drafts decided, drafts kept, audited, labelled, and audits that were worse.
    answers: int = 0
    kept: int = 0
    stopped_early: int = 0
    audits: int = 0
    labels: int = 0
    worse: int = 0
    #: The share of answers that were kept and worse, estimated from the audits; None before the first.
    risk: float | None = None
    #: The upper confidence bound of that.
    risk_bound: float | None = None
    #: Sums over the audits, each weighted by the inverse of its probability: of those that were worse, and its square.
    weighted_worse: float = 0.0
    #: Natural logarithms of the detectors that watch the promise, one for each bet.
    promise: tuple[float, ...] = ()
    #: The same of those that only warn, by name.
    warnings: dict[str, tuple[float, ...]] = {}
    #: Warnings that were given already, each once for a calibration.
    warned: tuple[str, ...] = ()
    #: Of late, fading: drafts kept and drafts decided.
    recent_kept: float = 0.0
    recent_answers: float = 0.0
    #: Answers for which the raised audit share still holds after a warning.
    burst_left: int = Field(0, ge=0)
    #: When the promise was found broken, in seconds since the epoch; None while it holds.
    broken_at_s: float | None = None
    #: Labels since then.
    labels_since: int = 0
    #: How often a new calibration was tried since then.
    looks: int = 0
