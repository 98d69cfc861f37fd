"""Upper confidence bounds on a risk: exact for equally weighted labels, by betting for weighted ones.

Sources: Clopper and Pearson (Biometrika 1934); Waudby-Smith and Ramdas, "Estimating means of bounded random variables
by betting" (JRSS-B 2024). The bets here are fixed beforehand and averaged, so that the bound does not depend on the
order of the labels, and holds at any time at which one looks.
"""

import math

import numpy as np
import numpy.typing as npt

from quality.samples import Array, sample

#: A bound is found when it moves by less.
TOLERANCE = 1e-12
#: Steps after which it is taken as it is; six are usual.
MOST_STEPS = 60
#: Terms of a continued fraction; it needs about the root of the number of labels.
MOST_TERMS = 10_000
#: A denominator of a continued fraction that would be 0.
ALMOST_NOTHING = 1e-300
#: The bets against a risk that is too high, as shares of the largest one that can never lose all: each label multiplies
#: what is held by 1 + bet * (risk - label). High bets find low risks fast, low bets do not lose much where labels
#: scatter; evenly spaced ones gave the tightest bounds of those tried (a single bet, geometric spacing) for 50 to 5,000
#: labels and risks of 0 to 5 %.
BETS = (np.arange(8) + 0.5) / 8


def clopper_pearson(bad: int, of: int, certainty: float) -> float:
    """The upper confidence bound of a share of which `bad` were seen among `of`; 1 where nothing was seen.

    In at least `certainty` of all samples the bound is not below the true share. Raises `ValueError` for counts that
    cannot be.
    """
    return float(clopper_pearson_bounds([bad], of, certainty)[0])


def clopper_pearson_bounds(bad: npt.ArrayLike, of: int, certainty: float) -> Array:
    """`clopper_pearson` for several counts of one sample, of shape (counts,): milliseconds for hundreds."""
    counts = np.asarray(bad, np.float64)
    if ((counts < 0) | (counts > of)).any() or not 0 < certainty < 1:
        raise ValueError(f"no bound of {bad!r} among {of} at certainty {certainty}")
    distinct, places = np.unique(counts, return_inverse=True)
    bounds = np.ones_like(distinct)
    some = distinct < of
    bounds[some] = _beta_quantile(distinct[some] + 1, of - distinct[some], certainty)
    return bounds[places]


def weighted_upper(values: npt.ArrayLike, most: float, certainty: float) -> float:
    """The upper confidence bound of the mean of independent values in [0, most]; `most` where there are none.

    For figures weighted by the inverse of the probability with which they were drawn: one value for each answer, 0 for
    those that were not drawn, and `most` known beforehand. Raises `ValueError` for values out of range.
    """
    distinct, counts = np.unique(np.asarray(values, np.float64), return_counts=True)
    if most <= 0 or not ((distinct >= 0) & (distinct <= most)).all():
        raise ValueError(f"there are values outside [0, {most}]")
    stakes, shares = np.ones(len(distinct)), distinct / most
    return most * float(_where_bets_win(stakes, shares, counts[None].astype(np.float64), certainty)[0])


def weighted_share_upper(bad: npt.ArrayLike, weights: npt.ArrayLike, certainty: float) -> float:
    """The upper confidence bound of a share among all answers, from those that were drawn; 1 where none was.

    `bad`: 0 or 1 for each that was drawn; `weights`: the inverse of the probability with which it was drawn. The
    number of answers that were not drawn is not needed: the bound is of E[weight * bad] / E[weight].
    """
    _, is_bad, masses = sample(bad, bad, weights)
    classes, places = np.unique(masses, return_inverse=True)
    totals = np.bincount(places, minlength=len(classes)).astype(np.float64)
    counts = np.bincount(places, is_bad, minlength=len(classes)).astype(np.float64)
    return float(weighted_share_bounds(counts[None], totals, classes, certainty)[0])


def weighted_share_bounds(bad: Array, of: Array, weights: Array, certainty: float) -> Array:
    """`weighted_share_upper` for several counts of one sample.

    `bad`: shape (counts, weights), how many were bad among the `of` labels of each weight; `of` and `weights`: shape
    (weights,). Returns shape (counts,).
    """
    if not len(weights):
        return np.ones(len(bad))
    stakes = np.tile(weights / weights.max(), 2)
    outcomes = np.repeat([1.0, 0.0], len(weights))
    return _where_bets_win(stakes, outcomes, np.hstack([bad, of - bad]), certainty)


def _where_bets_win(stakes: Array, outcomes: Array, counts: Array, certainty: float) -> Array:
    """The lowest risks in [0, 1] against which the bets have won 1 / (1 - certainty), by bisection.

    What is held grows with the risk that is bet against. `stakes` and `outcomes`: shape (kinds,), in [0, 1];
    `counts`: shape (samples, kinds).
    """
    low, high = np.zeros(len(counts)), np.ones(len(counts))
    goal = math.log(len(BETS)) - math.log1p(-certainty)
    while len(counts) and (high - low).max() > TOLERANCE:
        risk = (low + high) / 2
        gains = stakes * (risk[:, None] - outcomes)
        held = np.stack([(counts * np.log1p(bet * gains)).sum(axis=1) for bet in BETS])
        won = np.logaddexp.reduce(held, axis=0) >= goal
        low, high = np.where(won, low, risk), np.where(won, risk, high)
    return high


def _beta_quantile(a: Array, b: Array, share: float) -> Array:
    """Where the beta distribution has this share below: Newton's method inside a bracket that bisection narrows."""
    low, high = np.zeros_like(a), np.ones_like(a)
    at = (a + 1) / (a + b + 2)
    log_beta = _log_beta(a, b)
    for _ in range(MOST_STEPS):
        excess = _beta_below(at, a, b, log_beta) - share
        low, high = np.where(excess < 0, at, low), np.where(excess < 0, high, at)
        density = np.exp((a - 1) * np.log(at) + (b - 1) * np.log1p(-at) - log_beta)
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            step = at - excess / density
        found = np.where((step > low) & (step < high), step, (low + high) / 2)
        moved = np.abs(found - at).max(initial=0.0)
        at = found
        if moved < TOLERANCE:
            break
    return at


def _log_beta(a: Array, b: Array) -> Array:
    pairs = zip(a.tolist(), b.tolist(), strict=True)
    return np.array([math.lgamma(x) + math.lgamma(y) - math.lgamma(x + y) for x, y in pairs])


def _beta_below(at: Array, a: Array, b: Array, log_beta: Array) -> Array:
    """The regularised incomplete beta function, by its continued fraction (Lentz's method; Press et al., 6.4)."""
    swap = at > (a + 1) / (a + b + 2)
    x, p, q = np.where(swap, 1 - at, at), np.where(swap, b, a), np.where(swap, a, b)
    front = np.exp(p * np.log(x) + q * np.log1p(-x) - log_beta) / p
    upper = np.ones_like(x)
    lower = 1 / _not_0(1 - (p + q) * x / (p + 1))
    fraction = lower
    for m in range(1, MOST_TERMS):
        for term in (
            m * (q - m) * x / ((p + 2 * m - 1) * (p + 2 * m)),
            -(p + m) * (p + q + m) * x / ((p + 2 * m) * (p + 2 * m + 1)),
        ):
            lower = 1 / _not_0(1 + term * lower)
            upper = _not_0(1 + term / upper)
            change = upper * lower
            fraction = fraction * change
        if np.abs(change - 1).max(initial=0.0) < TOLERANCE:
            break
    return np.where(swap, 1 - front * fraction, front * fraction)


def _not_0(values: Array) -> Array:
    return np.where(np.abs(values) < ALMOST_NOTHING, ALMOST_NOTHING, values)
