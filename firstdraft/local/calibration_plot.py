"""Draws a calibration: whether its probabilities are right, and what cost buys what quality. Needs matplotlib."""

from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from quality.calibrators import cross_fitted
from quality.discrimination import reliability
from schemas.calibration import Calibration

#: Resamples of the labels for the bands, and the share of them inside.
RESAMPLES, INSIDE = 200, 0.9
#: Costs at which the bands are drawn, as shares of the cloud alone.
STEPS = 101
INK, ACCENT, PALE = "#1b2a41", "#c2410c", "#94a3b8"


def draw(calibration: Calibration, path: Path) -> None:
    """Write the picture, SVG or PNG by the path's ending."""
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "firstdraft", "font.size": 10}):
        figure = Figure(figsize=(11, 4.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        scores = np.array([label.score for label in calibration.labels])
        worse = np.array([label.worse for label in calibration.labels])
        _reliability(left, scores, worse)
        _cost(right, calibration, scores, worse)
        scope = calibration.scope
        figure.suptitle(f"{scope.edge_model} before {scope.cloud_model}, {len(scores)} labels", color=INK)
        figure.savefig(path, dpi=120, metadata={"Date": None} if path.suffix == ".svg" else None)


def _reliability(axes: "np.typing.Any", scores: "np.typing.Any", worse: "np.typing.Any") -> None:
    """Predicted and observed shares, with counts below; predictions are cross-fitted."""
    probabilities = cross_fitted(scores, ~worse)
    bins = reliability(probabilities, ~worse)
    axes.plot([0, 1], [0, 1], color=PALE, linestyle="--", label="perfect")
    promised, good = [each.promised for each in bins], [each.good for each in bins]
    low = [max(0.0, each.good - each.good_low) for each in bins]
    high = [max(0.0, each.good_high - each.good) for each in bins]
    axes.errorbar(promised, good, yerr=[low, high], color=ACCENT, marker="o", capsize=3, label="observed, 95 %")
    counts = axes.twinx()
    counts.hist(probabilities, bins=20, range=(0, 1), color=PALE, alpha=0.4)
    counts.set_ylim(0, counts.get_ylim()[1] * 4)
    counts.set_ylabel("drafts (bars)")
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="predicted: as good as the cloud", ylabel="observed")
    axes.legend(loc="upper left", frameon=False)


def _cost(axes: "np.typing.Any", calibration: Calibration, scores: "np.typing.Any", worse: "np.typing.Any") -> None:
    """The share of answers that are worse drafts, against the cost saved, over all thresholds."""
    costs = np.array([label.cloud_cost or 0.0 for label in calibration.labels])
    costs = costs if costs.sum() > 0 else np.ones(len(scores))
    grid = np.linspace(0, 1, STEPS)
    rng = np.random.default_rng(0)
    curves = []
    for _ in range(RESAMPLES):
        drawn = rng.integers(0, len(scores), len(scores))
        curves.append(_curve(grid, scores[drawn], worse[drawn], costs[drawn]))
    low, high = np.quantile(curves, [(1 - INSIDE) / 2, (1 + INSIDE) / 2], axis=0)
    axes.fill_between(grid, low, high, color=ACCENT, alpha=0.2, label=f"{INSIDE:.0%} of resamples")
    axes.plot(grid, _curve(grid, scores, worse, costs), color=ACCENT, label="by confidence")
    axes.plot([0, 1], [0, worse.mean()], color=PALE, linestyle="--", label="at random")
    if calibration.goal.max_risk is not None:
        axes.axhline(calibration.goal.max_risk, color=INK, linewidth=0.8, linestyle=":", label="promised risk")
    if calibration.threshold is not None:
        kept = scores >= calibration.threshold
        at = (costs[kept].sum() / costs.sum(), (kept & worse).mean())
        axes.plot(*at, marker="D", color=INK, linestyle="", label="threshold")
    axes.set(xlim=(0, 1), xlabel="share of the cloud's cost that is saved", ylabel="answers that are worse drafts")
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper left", frameon=False)


def _curve(
    grid: "np.typing.Any", scores: "np.typing.Any", worse: "np.typing.Any", costs: "np.typing.Any"
) -> "np.typing.Any":
    order = np.argsort(-scores, kind="stable")
    saved = np.append(0.0, np.cumsum(costs[order]) / costs.sum())
    risk = np.append(0.0, np.cumsum(worse[order]) / len(worse))
    return np.interp(grid, saved, risk)
