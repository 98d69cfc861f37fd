"""A sample of labels as arrays: checked, weighted, and dealt into folds.

What the other modules of this package read before they compute; no statistics of its own.
"""

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]


def column(values: npt.ArrayLike, length: int, name: str) -> Array:
    """The values as an array of shape (length,). Raises `ValueError` if they are others, or not finite."""
    checked = np.asarray(values, np.float64)
    if checked.shape != (length,):
        raise ValueError(f"{name} has shape {checked.shape}; there are {length} labels")
    if not np.isfinite(checked).all():
        raise ValueError(f"{name} has values that are not finite")
    return checked


def sample(
    scores: npt.ArrayLike, outcomes: npt.ArrayLike, weights: npt.ArrayLike | None = None
) -> tuple[Array, Array, Array]:
    """Scores, outcomes in [0, 1] and weights above 0 (1 where none are given), of one shape (labels,).

    Raises `ValueError` for anything else, NaN included.
    """
    length = np.size(scores)
    values, results = column(scores, length, "scores"), column(outcomes, length, "outcomes")
    masses = np.ones(length) if weights is None else column(weights, length, "weights")
    if ((results < 0) | (results > 1)).any():
        raise ValueError("outcomes has values outside [0, 1]")
    if (masses <= 0).any():
        raise ValueError("weights has values that are not above 0")
    return values, results, masses


def effective_size(weights: Array) -> float:
    """How many equally weighted labels tell as much as these (Kish, 1965)."""
    return float(weights.sum() ** 2 / (weights @ weights)) if len(weights) else 0.0


def dealt(order: Indices, folds: int, seed: int) -> Indices:
    """The fold of each label, shape (labels,).

    Neighbours in `order` go to different folds, so that each fold sees the whole range. Where `order` comes from the
    labels' values the folds do not depend on how the labels were listed.
    """
    rng = np.random.default_rng(seed)
    turns = np.concatenate([rng.permutation(folds) for _ in range(-(-len(order) // folds))] or [np.empty(0, np.intp)])
    fold = np.empty(len(order), np.intp)
    fold[order] = turns[: len(order)]
    return fold
