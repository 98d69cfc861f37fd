"""How soon a broken promise is noticed in service, and what watching for it costs, by simulation.

    python -m experiments.drift [--runs N]

A calibration is made from 400 labels of easy traffic, for a risk of 5 % with 90 % certainty. Then 3,000 answers
come: half of them as calibrated, then the workload becomes hard, or the edge model is replaced by one that is worse
and surer of itself. Kept drafts are audited with the probability that the monitor asks for; labels arrive 20 to 100
answers after their draft, and a third of the escalated drafts are stopped early and have none. The scores are made
up; the code that decides is the workers' own (`quality.drift`).
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from experiments.harness.report import parser, print_document, print_table
from quality.calibrators import fit_calibrator
from quality.drift import AuditPlan, refit, update
from quality.samples import Array
from quality.thresholds import lowest_threshold, risk_frontier, thinned
from schemas.calibration import Calibration, Goal, Label, Scope, Tally
from schemas.drift import DriftKind, DriftState

MAX_RISK, CERTAINTY, LABELS = 0.05, 0.9, 400
ANSWERS, CHANGE_AT, WINDOW = 3_000, 1_500, 1_000
DELAY, STOPPED_EARLY = (20, 100), 1 / 3


@dataclass(frozen=True)
class Traffic:
    """A draft is good with probability g, drawn from a beta distribution; its score is g, noisy and shifted."""

    name: str
    good: tuple[float, float]
    noise: float = 0.12
    shift: float = 0.0

    def drafts(self, rng: np.random.Generator, number: int) -> tuple[Array, Array]:
        """Scores, and 1 where the draft is worse; both of shape (number,)."""
        good = rng.beta(*self.good, number)
        scores = np.clip(good + rng.normal(self.shift, self.noise, number), 0.0, 1.0)
        return scores, (rng.random(number) >= good).astype(np.float64)


EASY = Traffic("as calibrated", (3.0, 1.2))
CHANGES = (
    EASY,
    Traffic("a harder workload", (1.2, 2.0), noise=0.3, shift=0.2),
    Traffic("another edge model, worse and surer", (1.5, 1.5), shift=0.3),
)


@dataclass(frozen=True)
class Run:
    """What happened in one run."""

    #: Answers from the change, and from the first audit after it that was worse, until no draft is kept; None: never.
    found_after: int | None
    shown_after: int | None
    #: The highest risk over any 1,000 answers, in units of the promise.
    worst: float
    audits: int
    kept: int
    #: Whether the promise was called broken before the change.
    false_alarm: bool
    #: Answers from the break until a new calibration keeps drafts; None: not yet.
    back_after: int | None


def calibrated(rng: np.random.Generator) -> Calibration:
    """A calibration of easy traffic."""
    scores, worse = EASY.drafts(rng, LABELS)
    frontier = risk_frontier(scores, worse, CERTAINTY)
    return Calibration(
        scope=Scope(edge_model="edge", cloud_model="cloud", strategy="ensemble"),
        goal=Goal(max_risk=MAX_RISK, certainty=CERTAINTY),
        threshold=lowest_threshold(frontier, MAX_RISK),
        calibrator=fit_calibrator(scores, 1 - worse),
        frontier=thinned(frontier),
    )


def draft_label(rng: np.random.Generator, label: Label, state: DriftState) -> tuple[Label | None, bool]:
    """The label that a draft will have, if any, and whether it is stopped early."""
    if label.kept:
        audited = rng.random() < state.audit_share
        return (label.model_copy(update={"drawn": state.audit_share}) if audited else None), False
    stopped = state.broken_at_s is None and rng.random() < STOPPED_EARLY
    return (None if stopped else label), stopped


def simulate(change: Traffic, plan: AuditPlan, seed: int) -> Run:
    """One run."""
    rng = np.random.default_rng(seed)
    calibration = calibrated(rng)
    state, _ = update(None, calibration, plan, tally=Tally(), labels=(), now_s=0.0)
    before, after = EASY.drafts(rng, CHANGE_AT), change.drafts(rng, ANSWERS - CHANGE_AT)
    scores, worse = np.append(before[0], after[0]), np.append(before[1], after[1])
    waiting: list[tuple[int, int, Label]] = []
    since: list[Label] = []
    bad = np.zeros(ANSWERS)
    first_shown = broken_at = back_at = None
    audits = kept_total = 0
    false_alarm = False
    for at in range(ANSWERS):
        own = 2.0 if calibration.threshold is None else calibration.threshold
        kept = bool(scores[at] >= max(own, state.threshold or 0.0))
        bad[at] = kept and worse[at]
        kept_total += kept
        label = Label(score=float(scores[at]), worse=bool(worse[at]), worth=1 - worse[at], kept=kept)
        drawn, stopped = draft_label(rng, label, state)
        if drawn is not None:
            heapq.heappush(waiting, (at + int(rng.integers(*DELAY)), at, drawn))
            audits += kept
            if kept and at >= CHANGE_AT and worse[at] and first_shown is None:
                first_shown = at
        labels = []
        while waiting and waiting[0][0] <= at:
            labels.append(heapq.heappop(waiting)[2])
        tally = Tally(kept=int(kept), escalated=int(not kept), stopped_early=int(stopped))
        state, events = update(state, calibration, plan, tally=tally, labels=labels, now_s=float(at))
        if state.broken_at_s is not None:
            since += labels
        for event in events:
            if event.kind is DriftKind.RAISED:
                false_alarm |= at < CHANGE_AT
                broken_at = at if broken_at is None and at >= CHANGE_AT else broken_at
            elif event.kind is DriftKind.REFIT_DUE and (fresh := refit(calibration, since, state.looks)) is not None:
                calibration, since = fresh, []
                state, _ = update(None, calibration, plan, tally=Tally(), labels=(), now_s=float(at))
                back_at = at if back_at is None and broken_at is not None else back_at
    window = np.convolve(bad, np.ones(WINDOW), "valid") / WINDOW
    return Run(
        found_after=None if broken_at is None else broken_at - CHANGE_AT,
        shown_after=None if broken_at is None or first_shown is None else broken_at - first_shown,
        worst=float(window.max()) / MAX_RISK,
        audits=audits,
        kept=kept_total,
        false_alarm=false_alarm,
        back_after=None if back_at is None or broken_at is None else back_at - broken_at,
    )


def quantile(values: Sequence[int | None], share: float) -> float | None:
    """A quantile of what was measured; runs that never came so far are left out."""
    found = [value for value in values if value is not None]
    return float(np.quantile(found, share)) if found else None


def main() -> None:
    """Simulate, print tables and one JSON document."""
    options = parser(__doc__)
    options.add_argument("--runs", type=int, default=200)
    runs = options.parse_args().runs
    figures: dict[str, float | None] = {}
    rows = []
    worst_of_all, delays = 0.0, []
    for share in (0.02, 0.05, 0.1):
        plan = AuditPlan(share=share)
        for change in CHANGES:
            found = [simulate(change, plan, seed) for seed in range(runs)]
            worst = max(run.worst for run in found)
            shown = [run.shown_after for run in found]
            rows.append(
                (
                    f"{share:.0%}",
                    change.name,
                    f"{sum(run.false_alarm for run in found) / runs:.1%}",
                    quantile([run.found_after for run in found], 0.5),
                    quantile(shown, 0.5),
                    quantile(shown, 0.95),
                    f"{sum(run.found_after is not None for run in found) / runs:.0%}",
                    f"{worst:.2f}",
                    f"{sum(run.worst > 2 for run in found) / runs:.1%}",
                    f"{sum(run.audits for run in found) / max(1, sum(run.kept for run in found)):.1%}",
                    quantile([run.back_after for run in found], 0.5),
                )
            )
            if share == AuditPlan().share and change is not EASY:
                worst_of_all = max(worst_of_all, worst)
                delays += shown
    figures["drift_answers"] = quantile(delays, 0.5)
    figures["drift_answers_p95"] = quantile(delays, 0.95)
    figures["drift_worst_risk_over_promise"] = worst_of_all
    columns = (
        "audits",
        "change",
        "false alarm",
        "found, median",
        "from first worse audit, median",
        "p95",
        "found in",
        "worst risk / promise",
        "above 2",
        "audited",
        "back after, median",
    )
    print_table(columns, rows)
    print_document("drift", figures, runs=runs, answers=ANSWERS)


if __name__ == "__main__":
    main()
