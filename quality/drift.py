"""Watches whether a calibration keeps its promise in service, and what to do when it does not.

The promise is that the joint risk P(kept and worse) is at most r. With a share k of drafts kept of late, that is a
share r / k of worse ones among kept drafts; and an audit is a fair draw from those, whatever the probability with
which drafts are audited at the time. A bet b multiplies a stake by 1 + b (worse - r / k) at each audit, whose mean
is at most 1 while the promise holds: the stakes are e-processes (Waudby-Smith and Ramdas, JRSS-B 2024). Starting
one at every audit and keeping the best (CUSUM) gives an e-detector: while the promise holds, the mean number of
audits until it passes `AUDITS_TO_FALSE_ALARM` is at least that number, at whatever time one looks (Shin, Ramdas and
Rinaldo, 2023). Several bets are averaged. Counting by audits, not by answers, keeps the evidence right while labels
are on their way.

With an audit share of 2 %, a promise of 5 % that is broken threefold shows one worse audit in 330 answers: too
late. So more is audited (a burst) while the stake is above `BURST_AT`, which one worse audit is enough for, and for
some answers after signs that need no audit: escalated drafts, which the cloud's answers label, that are worse than
the calibrator said, or a share of kept drafts that is not what it was. Each of these is a detector of the same
kind, and warns once for a calibration.

When the promise is broken, no draft is kept. Then every draft is labelled, and after 100, 200, 400, ... labels a
new calibration is made from those alone, with a certainty that shares the allowed error over these looks.

What this cannot see: errors that both models make; drafts that differ from the cloud's answer in what a similarity
rule does not look at. It assumes that a label arrives whatever it says; audits that expire while the cloud is busy
are lost evenly over good and worse drafts only if busy times see the same traffic.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quality.calibrators import fit_calibrator, probability
from quality.discrimination import can_tell, discrimination
from quality.thresholds import lowest_threshold, risk_frontier, thinned
from schemas.calibration import Calibration, Label, Tally
from schemas.drift import DriftEvent, DriftKind, DriftState

#: A threshold that no confidence reaches.
KEEP_NOTHING = 2.0
#: The mean number of audits until the promise is called broken although it is kept, at least; and of labels or answers
#: until a warning.
AUDITS_TO_FALSE_ALARM, TO_FALSE_WARNING = 200, 1_000
#: Bets on the promise, as shares of the largest that a fine audit can lose nothing more than the stake to.
BETS = (0.1, 0.2, 0.35)
#: The stake from which on more drafts are audited.
BURST_AT = 1.5
#: Answers over which the share of kept drafts is averaged, fading.
RECENT_ANSWERS = 300
#: Bets on the risk being low, as shares of the largest that loses all at one worse audit.
BOUND_BETS = (0.05, 0.1, 0.2, 0.4, 0.8)
#: Bets of the warnings, whose figures lie in [-1, 1].
WARNING_BETS = (0.2, 0.5)
#: By how much the share of kept drafts may differ from the calibration's without being a sign.
KEPT_MARGIN = 0.05
#: Labels from which a new calibration is tried.
FIRST_LOOK = 100


@dataclass(frozen=True)
class AuditPlan:
    """How many drafts are audited."""

    #: Share of kept drafts, and the same during a burst.
    share: float = 0.02
    burst_share: float = 0.6
    #: Answers that a burst lasts after a warning.
    burst_answers: int = 200


def promised_risk(calibration: Calibration) -> float:
    """The risk that audits are held to.

    That is what audits would call worse when the calibration was made, where that is known; else the promised risk, or
    for a calibration that was made for a budget or a price, its own bound at the threshold.
    """
    if calibration.audit_risk is not None:
        return calibration.audit_risk
    if calibration.goal.max_risk is not None:
        return calibration.goal.max_risk
    bounds = [point.bound for point in calibration.frontier if point.threshold >= (calibration.threshold or math.inf)]
    return max(bounds, default=0.0)


def update(
    state: DriftState | None,
    calibration: Calibration,
    plan: AuditPlan,
    *,
    tally: Tally,
    labels: Sequence[Label],
    now_s: float,
) -> tuple[DriftState, tuple[DriftEvent, ...]]:
    """The state after the drafts of a tally were decided and these labels arrived, and what was done about it.

    `state` is None at the first call for a calibration. The order of what arrived together does not matter.
    """
    before = state if state is not None else DriftState(audit_share=plan.share)
    answers = tally.kept + tally.escalated
    audits = [label for label in labels if label.kept]
    changes: dict[str, object] = {
        "answers": before.answers + answers,
        "kept": before.kept + tally.kept,
        "stopped_early": before.stopped_early + tally.stopped_early,
        "audits": before.audits + len(audits),
        "labels": before.labels + len(labels),
        "worse": before.worse + sum(label.worse for label in audits),
    }
    if before.broken_at_s is not None:
        # Audits that arrive now are of drafts that were kept before.
        return _recovering(before, len(labels) - len(audits), changes)
    risk = promised_risk(calibration)
    fading = math.exp(-answers / RECENT_ANSWERS)
    recent = (before.recent_kept * fading + tally.kept, before.recent_answers * fading + answers)
    kept_share = recent[0] / recent[1] if recent[1] else 1.0
    promise = _promise(before.promise, min(1.0, risk / kept_share) if kept_share else 1.0, audits)
    weighted = before.weighted_worse + sum(1 / label.drawn for label in audits if label.worse)
    changes |= {"promise": promise, "weighted_worse": weighted, "recent_kept": recent[0], "recent_answers": recent[1]}
    seen = before.answers + answers
    if before.audits + len(audits):
        changes["risk"] = min(1.0, weighted / max(seen, 1))
        changes["risk_bound"] = _risk_bound(weighted, seen, plan.share)
    if _stake(promise) >= AUDITS_TO_FALSE_ALARM:
        message = (
            f"more than {risk:.1%} of answers are kept drafts that are worse ({changes['worse']} of "
            f"{changes['audits']} audits): no draft is kept until there is a new calibration"
        )
        broken = {"threshold": KEEP_NOTHING, "broken_at_s": now_s, "audit_share": plan.share, "burst_left": 0}
        return before.model_copy(update={**changes, **broken}), (DriftEvent(kind=DriftKind.RAISED, message=message),)
    warnings, found = _warnings(before, calibration, tally, labels)
    changes |= {"warnings": warnings, "warned": (*before.warned, *found)}
    burst = plan.burst_answers if found else max(before.burst_left - answers, 0)
    is_burst = burst > 0 or _stake(promise) >= BURST_AT
    changes |= {"burst_left": burst, "audit_share": max(plan.burst_share, plan.share) if is_burst else plan.share}
    events = tuple(DriftEvent(kind=DriftKind.WARNED, message=f"{name}: more drafts are audited") for name in found)
    return before.model_copy(update=changes), events


def _recovering(
    before: DriftState, num_labels: int, changes: dict[str, object]
) -> tuple[DriftState, tuple[DriftEvent, ...]]:
    """Count labels until the next look."""
    since = before.labels_since + num_labels
    due = since >= FIRST_LOOK * 2**before.looks
    after = before.model_copy(update={**changes, "labels_since": since, "looks": before.looks + due})
    message = f"{since} labels since the promise was broken"
    return after, (DriftEvent(kind=DriftKind.REFIT_DUE, message=message),) if due else ()


def _promise(logs: tuple[float, ...], most: float, audits: Sequence[Label]) -> tuple[float, ...]:
    """The detectors after these audits, of which at most a share `most` should be worse.

    Audits of one call are taken as if the fine ones came first, which is the order of least evidence.
    """
    num_worse = sum(label.worse for label in audits)
    if most >= 1:
        return tuple(0.0 for _ in BETS)
    after = []
    for share, log in zip(BETS, logs or (0.0,) * len(BETS), strict=True):
        bet = share / most
        fine = max(log + (len(audits) - num_worse) * math.log1p(-share), 0.0)
        after.append(max(fine, 0.0) + num_worse * math.log1p(bet * (1 - most)))
    return tuple(after)


def _stake(logs: tuple[float, ...]) -> float:
    """The mean of the detectors."""
    return sum(math.exp(min(log, 700.0)) for log in logs) / len(logs) if logs else 1.0


def _risk_bound(weighted: float, answers: int, share: float) -> float:
    """The upper 90 % confidence bound of the risk since the calibration became active, valid at any time.

    It is the r at which a stake that bets that the risk is below r, 1 - b (Z - r), has grown tenfold. Figures below the
    largest possible, 1 / `share`, are taken as a mixture of that and 0 with the same mean, which never wins more, since
    the logarithm is concave.
    """
    if not answers:
        return 1.0
    most = 1 / share if share > 0 else 1.0
    bad, fine = weighted / most, max(answers - weighted / most, 0.0)
    low, high = min(1.0, weighted / answers), 1.0
    for _ in range(40):
        risk = (low + high) / 2
        p = min(risk / most, 1 - 1e-12)
        logs = [bad * math.log1p(-bet) + fine * math.log1p(bet * p / (1 - p)) for bet in BOUND_BETS]
        won = sum(math.exp(min(each, 700.0)) for each in logs) / len(logs) >= 10.0
        low, high = (low, risk) if won else (risk, high)
    return high


def _warnings(
    before: DriftState, calibration: Calibration, tally: Tally, labels: Sequence[Label]
) -> tuple[dict[str, tuple[float, ...]], tuple[str, ...]]:
    """The warning detectors, and the names of those that have just passed."""
    kept_share = max(
        (point.kept for point in calibration.frontier if point.threshold >= (calibration.threshold or math.inf)),
        default=0.0,
    )
    most, least = min(kept_share + KEPT_MARGIN, 1.0), max(kept_share - KEPT_MARGIN, 0.0)
    kept = [(1 - most, tally.kept), (-most, tally.escalated)]
    fewer = [(least - 1, tally.kept), (least, tally.escalated)]
    surprises = [
        (probability(calibration.calibrator, label.score) - (not label.worse), 1) for label in labels if not label.kept
    ]
    figures = {
        "escalated drafts are worse than calibrated": surprises,
        "more drafts are kept than calibrated": kept,
        "fewer drafts are kept than calibrated": fewer,
    }
    after, found = {}, []
    for name, values in figures.items():
        logs = before.warnings.get(name, (0.0,) * len(WARNING_BETS))
        after[name] = tuple(
            max(max(log, 0.0) + sum(count * math.log1p(bet * value) for value, count in values), 0.0)
            for bet, log in zip(WARNING_BETS, logs, strict=True)
        )
        if name not in before.warned and _stake(after[name]) >= TO_FALSE_WARNING:
            found.append(name)
    return after, tuple(found)


def refit(calibration: Calibration, labels: Sequence[Label], look: int) -> Calibration | None:
    """A calibration for the same promise from labels since it was broken; None where they allow no draft to be kept.

    `look`: how many times this is tried, from 1: each look has half of the error probability of the one before. Only
    escalated drafts' labels count: all drafts are escalated meanwhile, and audits are of drafts from before.
    """
    goal, risk = calibration.goal, promised_risk(calibration)
    labels = [label for label in labels if not label.kept]
    if not labels:
        return None
    scores, worse = np.array([label.score for label in labels]), np.array([label.worse for label in labels])
    if not can_tell(discrimination(scores, ~worse)) and worse.mean() > risk:
        return None
    certainty = 1 - (1 - goal.certainty) / 2**look
    frontier = risk_frontier(scores, worse, certainty)
    threshold = lowest_threshold(frontier, risk)
    if threshold is None:
        return None
    return calibration.model_copy(
        update={
            "version": 0,
            "threshold": threshold,
            "calibrator": fit_calibrator(scores, ~worse),
            "frontier": thinned(frontier),
            "labels": tuple(labels),
            "reason": f"refitted from {len(labels)} labels after drift",
            "labelled_by": calibration.audited_by,
            "audit_risk": risk,
        }
    )
