"""Upper confidence bounds on a risk: exact for equally weighted labels, by betting for weighted ones.

Sources: Clopper and Pearson (Biometrika 1934); Waudby-Smith and Ramdas, "Estimating means of bounded random variables
by betting" (JRSS-B 2024), here with fixed bets that are averaged, so that the order of the labels does not matter.
"""

import math

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

#: Halvings of an interval of length 1: the bound is right to about 1e-12.
HALVINGS = 40
#: The bets, as shares of the largest one that cannot lose everything. Each is a way to bet against a mean that is too
#: high; small ones win slowly where losses are common, large ones fast where they are rare.
BETS = np.geomspace(0.002, 0.98, 24)


def clopper_pearson(bad: int, of: int, certainty: float) -> float:
    """The upper confidence bound of a share of which `bad` were seen among `of`; 1 where nothing was seen.

    At least `certainty` of all samples give a bound that is not below the true share.
    """
    return float(clopper_pearson_bounds(np.array([bad]), of, certainty)[0])


def clopper_pearson_bounds(bad: npt.ArrayLike, of: int, certainty: float) -> Array:
    """`clopper_pearson` for an array of counts of one sample."""
    counts = np.asarray(bad, np.int64)
    low, high = np.zeros(counts.shape), np.ones(counts.shape)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        tail = np.array([_at_most(int(count), of, p) for count, p in zip(counts, middle, strict=True)])
        low, high = np.where(tail > 1 - certainty, middle, low), np.where(tail > 1 - certainty, high, middle)
    return high


def _at_most(count: int, of: int, probability: float) -> float:
    """P(X <= count) of a binomial X."""
    if count >= of:
        return 1.0
    return math.fsum(
        math.exp(
            math.lgamma(of + 1)
            - math.lgamma(k + 1)
            - math.lgamma(of - k + 1)
            + k * math.log(probability)
            + (of - k) * math.log1p(-probability)
        )
        for k in range(count + 1)
    )


def weighted_upper(values: npt.ArrayLike, most: float, certainty: float) -> float:
    """The upper confidence bound of the mean of independent values in [0, most]; `most` where there are none."""
    shares = np.asarray(values, np.float64) / most
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        wealth = np.log1p(BETS[:, None] * (middle - shares)).sum(axis=1)
        if np.logaddexp.reduce(wealth) - math.log(len(BETS)) < -math.log(1 - certainty):
            low = middle
        else:
            high = middle
    return high * most


def weighted_share_upper(bad: npt.ArrayLike, weights: npt.ArrayLike, certainty: float) -> float:
    """The upper confidence bound of sum(weight x bad) / sum(weight), for labels drawn with 1 / weight; 1 without any."""
    is_bad, scaled = np.asarray(bad, np.float64), np.asarray(weights, np.float64)
    scaled = scaled / scaled.max(initial=0.0) if scaled.size else scaled
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        wealth = np.log1p(BETS[:, None] * scaled * (middle - is_bad)).sum(axis=1)
        if np.logaddexp.reduce(wealth) - math.log(len(BETS)) < -math.log(1 - certainty):
            low = middle
        else:
            high = middle
    return high
