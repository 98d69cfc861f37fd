"""Calibrators: from a score to the probability that a draft is as good as the cloud's answer."""

import math
from bisect import bisect_right

import numpy as np
import numpy.typing as npt

from schemas.calibration import Calibrator, CalibratorKind

Array = npt.NDArray[np.float64]

#: From this many labels on the calibrator is isotonic; fewer carry no more than the two parameters of a logistic curve.
ISOTONIC_FROM = 200


def fit_calibrator(scores: npt.ArrayLike, good: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> Calibrator:
    """The calibrator of labelled scores, all of shape (labels,); `good` in [0, 1].

    Only the ratios of the weights matter. Without labels every score means 0.5.
    """
    values, goods = np.asarray(scores, np.float64), np.asarray(good, np.float64)
    mass = np.ones_like(values) if weights is None else np.asarray(weights, np.float64)
    order = np.lexsort((mass, goods, values))
    values, goods, mass = values[order], goods[order], mass[order]
    if len(values) < ISOTONIC_FROM:
        return _logistic(values, goods, mass)
    blocks: list[list[float]] = []
    for value in np.unique(values):
        at = values == value
        blocks.append([float(mass[at].sum()), float((mass * values)[at].sum()), float((mass * goods)[at].sum())])
        while len(blocks) > 1 and blocks[-2][2] * blocks[-1][0] >= blocks[-1][2] * blocks[-2][0]:
            last = blocks.pop()
            blocks[-1] = [a + b for a, b in zip(blocks[-1], last, strict=True)]
    knots = tuple((score / total, worth / total) for total, score, worth in blocks)
    return Calibrator(kind=CalibratorKind.ISOTONIC, knots=knots, labels=len(values))


def _logistic(scores: Array, good: Array, weights: Array) -> Calibrator:
    num_good, num_bad = float(weights @ good), float(weights @ (1 - good))
    targets = good * (num_good + 1) / (num_good + 2) + (1 - good) / (num_bad + 2)
    slope, intercept = 0.0, math.log((num_good + 1) / (num_bad + 1))
    for _ in range(50):
        guess = 1 / (1 + np.exp(-(slope * scores + intercept)))
        gradient = np.array([weights @ ((guess - targets) * scores), weights @ (guess - targets)])
        curve = weights * guess * (1 - guess)
        hessian = np.array([[curve @ scores**2, curve @ scores], [curve @ scores, curve.sum()]]) + 1e-6 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        slope, intercept = slope - float(step[0]), intercept - float(step[1])
    if slope < 0:
        slope, intercept = 0.0, math.log((num_good + 1) / (num_bad + 1))
    return Calibrator(kind=CalibratorKind.LOGISTIC, slope=slope, intercept=intercept, labels=len(scores))


def probabilities(calibrator: Calibrator, scores: npt.ArrayLike) -> Array:
    """The probability of each score, of the same shape."""
    values = np.asarray(scores, np.float64)
    if calibrator.kind is CalibratorKind.LOGISTIC:
        curve: Array = 1 / (1 + np.exp(-(calibrator.slope * values + calibrator.intercept)))
        return curve
    return np.interp(values, *np.array(calibrator.knots).T)


def probability(calibrator: Calibrator, score: float) -> float:
    """The probability of one score, in a microsecond: what a worker computes for each draft."""
    if calibrator.kind is CalibratorKind.LOGISTIC:
        return 1 / (1 + math.exp(-(calibrator.slope * score + calibrator.intercept)))
    knots = calibrator.knots
    after = bisect_right(knots, (score, math.inf))
    if after in {0, len(knots)}:
        return knots[min(after, len(knots) - 1)][1]
    (left, low), (right, high) = knots[after - 1], knots[after]
    return low + (high - low) * (score - left) / (right - left)


def cross_fitted(
    scores: npt.ArrayLike, good: npt.ArrayLike, weights: npt.ArrayLike | None = None, *, folds: int = 5, seed: int = 0
) -> Array:
    """The probability of each label by a calibrator that was fitted without it, shape (labels,)."""
    values, goods = np.asarray(scores, np.float64), np.asarray(good, np.float64)
    mass = np.ones_like(values) if weights is None else np.asarray(weights, np.float64)
    fold = np.random.default_rng(seed).permutation(len(values)) % folds
    out = np.empty(len(values))
    for k in range(folds):
        out[fold == k] = probabilities(
            fit_calibrator(values[fold != k], goods[fold != k], mass[fold != k]), values[fold == k]
        )
    return out
