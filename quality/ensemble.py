"""Weights of an ensemble's members, fitted to labels and judged out of fold.

A logistic regression of the labels on the members, whose coefficients may not be negative and are drawn towards zero
(ridge), fitted by accelerated projected gradients (Nesterov; Beck and Teboulle, 2009). Members are strongly correlated,
so that few labels do not tell their weights apart: the strength of the ridge is chosen by cross-validated log loss, and
equal weights and each member alone are judged on the same folds. What is fitted must win there to be used.
"""

import numpy as np
import numpy.typing as npt

from quality.samples import Array, Indices, column, dealt

#: Strengths of the ridge that are tried, per label, for members of unit variance.
RIDGES = (0.003, 0.03, 0.3)
#: Steps of one fit.
STEPS = 300
#: A member that hardly varies in the labels can tell nothing.
LEAST_SPREAD = 1e-9
#: Weights below this share of the sum are left out.
LEAST_WEIGHT = 0.02


def fit_weights(members: npt.ArrayLike, good: npt.ArrayLike, *, seed: int = 0, folds: int = 5) -> Array:
    """Weights of the members, not negative, with sum 1; shape (members,).

    `members`: shape (labels, members), values in [0, 1]; `good`: shape (labels,), in [0, 1]. The same for any order of
    the labels. Where all labels are the same, or there are none, all weights are equal. Raises `ValueError` for shapes
    that do not fit and values that are not finite.
    """
    values = np.asarray(members, np.float64)
    if values.ndim != 2 or not values.shape[1] or not np.isfinite(values).all():
        raise ValueError(f"members of shape {values.shape} are no table of finite values")
    labels = column(good, len(values), "good")
    equal = np.full(values.shape[1], 1 / values.shape[1])
    if len(values) < folds or np.ptp(labels) == 0:
        return equal
    order = np.lexsort((*values.T, labels))
    values, labels = values[order], labels[order]
    fold = dealt(np.lexsort((values.mean(axis=1), labels)), folds, seed)
    candidates = [equal, *np.eye(values.shape[1])]
    losses = [_out_of_fold(values @ weights, labels, fold) for weights in candidates]
    best, best_loss = candidates[int(np.argmin(losses))], min(losses)
    for ridge in RIDGES:
        scores = np.empty(len(values))
        for k in range(folds):
            rest = fold != k
            scores[~rest] = values[~rest] @ _weights(values[rest], labels[rest], ridge)
        loss = _out_of_fold(scores, labels, fold)
        if loss < best_loss:
            best, best_loss = _weights(values, labels, ridge), loss
    kept: Array = np.where(best >= LEAST_WEIGHT, best, 0.0)
    kept /= kept.sum()
    return kept


def _out_of_fold(scores: Array, good: Array, fold: Indices) -> float:
    """The mean log loss of each fold under a logistic curve of the scores that was fitted on the others."""
    total = 0.0
    for k in np.unique(fold):
        rest = fold != k
        centre, spread = scores[rest].mean(), max(float(scores[rest].std()), LEAST_SPREAD)
        line = _fit(((scores[rest] - centre) / spread)[:, None], good[rest], 1e-3)
        at = line[0] * (scores[~rest] - centre) / spread + line[1]
        total += float((np.logaddexp(0, at) - good[~rest] * at).sum())
    return total / len(scores)


def _weights(members: Array, good: Array, ridge: float) -> Array:
    """The fitted weights with sum 1; equal ones where no member has a positive coefficient."""
    spread = members.std(axis=0)
    usable = spread > LEAST_SPREAD
    weights = np.zeros(members.shape[1])
    if usable.any():
        standard = (members[:, usable] - members[:, usable].mean(axis=0)) / spread[usable]
        weights[usable] = _fit(standard, good, ridge)[:-1] / spread[usable]
    total = weights.sum()
    return weights / total if total > 0 else np.full(len(weights), 1 / len(weights))


def _fit(standard: Array, good: Array, ridge: float) -> Array:
    """Coefficients, none negative, and the intercept: shape (members + 1,)."""
    columns = np.column_stack([standard, np.ones(len(standard))])
    pull = np.append(np.full(standard.shape[1], ridge), 0.0)
    # The log loss curves by at most a quarter of the columns' second moments.
    step = 1 / (np.linalg.norm(columns, 2) ** 2 / (4 * len(columns)) + ridge)
    at = ahead = np.zeros(columns.shape[1])
    momentum = 1.0
    for _ in range(STEPS):
        guess = (1 + np.tanh(columns @ ahead / 2)) / 2
        after = ahead - step * (columns.T @ (guess - good) / len(good) + pull * ahead)
        after[:-1] = np.maximum(after[:-1], 0.0)
        following = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        ahead = after + (momentum - 1) / following * (after - at)
        at, momentum = after, following
    return at
