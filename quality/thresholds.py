"""Thresholds: which drafts are kept for a promised risk, a budget or a price.

A draft is kept where its score is at least the threshold; None keeps nothing. Shares are of all answers that the rule
decided about, escalated ones included. Scanned from the strictest threshold, the bound of the joint risk P(kept and
worse) needs no correction for the scan, since the risk itself only grows (risk-controlling prediction sets, Bates et
al., JACM 2021).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quality.bounds import clopper_pearson_bounds, weighted_share_upper
from schemas.calibration import FrontierPoint, Prices

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Costs:
    """What each labelled answer costs by the cloud alone, and what its draft costs; shape (labels,), one unit."""

    cloud: npt.ArrayLike
    edge: npt.ArrayLike | None = None


def risk_frontier(
    scores: npt.ArrayLike,
    worse: npt.ArrayLike,
    certainty: float,
    costs: Costs | None = None,
    weights: npt.ArrayLike | None = None,
) -> tuple[FrontierPoint, ...]:
    """What each threshold does, from the strictest to the laxest, one per distinct score; bounds do not decrease.

    `weights`: the inverse of the probability with which each label was drawn.
    """
    values, bad = np.asarray(scores, np.float64), np.asarray(worse, np.float64)
    mass = np.ones_like(values) if weights is None else np.asarray(weights, np.float64)
    if not len(values):
        return ()
    order = np.argsort(-values, kind="stable")
    values, bad, mass = values[order], bad[order], mass[order]
    ends = np.append(np.nonzero(np.diff(values))[0], len(values) - 1)
    if np.ptp(mass) == 0:
        bounds = clopper_pearson_bounds(np.cumsum(bad)[ends], len(values), certainty)
    else:
        places = np.arange(len(values))
        bounds = np.array([weighted_share_upper(bad * (places <= end), mass, certainty) for end in ends])
    bounds = np.maximum.accumulate(bounds)
    saved = [None] * len(ends) if costs is None else _saved(costs, mass, order, ends)
    total = mass.sum()
    kept, risk = np.cumsum(mass)[ends] / total, np.cumsum(mass * bad)[ends] / total
    return tuple(
        FrontierPoint(threshold=t, kept=k, risk=r, bound=b, cost_saved=s)
        for t, k, r, b, s in zip(
            values[ends].tolist(), kept.tolist(), risk.tolist(), bounds.tolist(), saved, strict=True
        )
    )


def _saved(costs: Costs, mass: Array, order: npt.NDArray[np.intp], ends: npt.NDArray[np.intp]) -> list[float]:
    cloud = mass * np.asarray(costs.cloud, np.float64)[order]
    edge = 0.0 if costs.edge is None else float(mass @ np.asarray(costs.edge, np.float64)[order])
    saved: list[float] = ((np.cumsum(cloud)[ends] - edge) / cloud.sum()).tolist()
    return saved


def thinned(frontier: tuple[FrontierPoint, ...]) -> tuple[FrontierPoint, ...]:
    """The laxest point of each bound: `lowest_threshold` gives the same for every risk."""
    return tuple(
        point
        for point, after in zip(frontier, (*frontier[1:], None), strict=True)
        if after is None or after.bound > point.bound
    )


def lowest_threshold(frontier: tuple[FrontierPoint, ...], max_risk: float) -> float | None:
    """The laxest threshold whose bound, scanned from the strictest, stays within the risk; None if there is none."""
    threshold = None
    for point in frontier:
        if point.bound > max_risk:
            break
        threshold = point.threshold
    return threshold


def threshold_for_cloud_share(
    scores: npt.ArrayLike, share: float, weights: npt.ArrayLike | None = None
) -> float | None:
    """The strictest threshold that escalates at most this share of all drafts."""
    values = np.asarray(scores, np.float64)
    mass = np.ones_like(values) if weights is None else np.asarray(weights, np.float64)
    if not len(values) or share >= 1:
        return None
    distinct, places = np.unique(values, return_inverse=True)
    below = np.cumsum(np.bincount(places, mass)) - np.bincount(places, mass)
    return float(distinct[np.nonzero(below <= share * mass.sum())[0][-1]])


def threshold_for_cost(
    scores: npt.ArrayLike,
    worse: npt.ArrayLike,
    costs: Costs,
    prices: Prices,
    weights: npt.ArrayLike | None = None,
) -> float | None:
    """The threshold with the lowest total price; `worse` are labels or probabilities, `costs` tokens or seconds."""
    values, bad = np.asarray(scores, np.float64), np.asarray(worse, np.float64)
    mass = np.ones_like(values) if weights is None else np.asarray(weights, np.float64)
    if not len(values):
        return None
    order = np.argsort(-values, kind="stable")
    gain = mass * (prices.cloud * np.asarray(costs.cloud, np.float64) - prices.worse * bad)
    ends = np.append(np.nonzero(np.diff(values[order]))[0], len(values) - 1)
    gains = np.cumsum(gain[order])[ends]
    best = int(np.argmax(gains))
    return float(values[order][ends[best]]) if gains[best] > 0 else None


def threshold_for_gap(
    scores: npt.ArrayLike, right_edge: npt.ArrayLike, right_cloud: npt.ArrayLike, share: float = 0.75
) -> float | None:
    """The laxest threshold whose answers close this share of the gap in quality between the edge and the cloud."""
    values = np.asarray(scores, np.float64)
    edge, cloud = np.asarray(right_edge, np.float64), np.asarray(right_cloud, np.float64)
    if not len(values):
        return None
    order = np.argsort(-values, kind="stable")
    ends = np.append(np.nonzero(np.diff(values[order]))[0], len(values) - 1)
    lost = np.cumsum((cloud - edge)[order])[ends]
    within = np.nonzero(lost <= (1 - share) * (cloud - edge).sum())[0]
    return float(values[order][ends[within[-1]]]) if len(within) else None
