"""How sure a draft is: strategies over figures per token, pooled to one number in [0, 1].

A strategy turns figures into one score in [0, 1] a token; the rule says how scores are pooled over the draft. Pure.
Strategies are found by entry points (group `firstdraft.confidence_strategies`), so that a user can add one: a function
from `TokenFigures` to a sequence of scores, one a token.

Sources: Hendrycks and Gimpel (ICLR 2017) for the maximum probability; Guo et al. (ICML 2017) for temperature scaling;
Malinin and Gales (ICLR 2021) for entropy and length normalisation; Scheffer et al. (IDA 2001) for the margin; Gupta et
al. (ICLR 2024) for quantiles over tokens.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.metadata import entry_points

import numpy as np

from schemas.drafts import TokenFigures
from schemas.requests import ConfidenceRule, Pooling
from schemas.results import ConfidenceReport

Strategy = Callable[[TokenFigures], Sequence[float]]

#: Where packages announce strategies.
ENTRY_POINT_GROUP = "firstdraft.confidence_strategies"
#: The strategy that is a weighted mean of others.
ENSEMBLE = "ensemble"
#: The lowest score that `log_mean` takes the logarithm of: one impossible token leaves the draft unsure, not undefined.
LOWEST_SCORE = 1e-9


class UnknownStrategy(ValueError):
    """A confidence strategy that no installed package announces, or an ensemble without members."""


def max_prob(figures: TokenFigures) -> Sequence[float]:
    """Probability of the chosen token (Hendrycks and Gimpel, ICLR 2017)."""
    return figures.probability


def entropy(figures: TokenFigures) -> Sequence[float]:
    """1 minus the normalised entropy: how far from uniform the model was."""
    return tuple(1.0 - value for value in figures.normalised_entropy)


def temperature(figures: TokenFigures) -> Sequence[float]:
    """Probability of the chosen token under the fitted temperature (Guo et al., ICML 2017)."""
    return figures.scaled_probability


def top_k_agg(figures: TokenFigures) -> Sequence[float]:
    """Probability of the k likeliest tokens together: low where the choice was wide open."""
    return figures.top_k_mass


def margin(figures: TokenFigures) -> Sequence[float]:
    """Probability of the first choice minus that of the second (Scheffer et al., IDA 2001)."""
    return figures.margin


@cache
def strategies() -> Mapping[str, Strategy]:
    """Every installed strategy by name. Read once a process."""
    return {entry.name: entry.load() for entry in entry_points(group=ENTRY_POINT_GROUP)}


def members(rule: ConfidenceRule) -> Mapping[str, float]:
    """The strategies that have a part in the rule, with weights that sum to 1. Raises `UnknownStrategy`."""
    weights = dict(rule.weights) if rule.strategy == ENSEMBLE else {rule.strategy: 1.0}
    known = strategies()
    for name in weights:
        if name not in known:
            names = ", ".join(sorted([*known, ENSEMBLE]))
            raise UnknownStrategy(f"confidence strategy {name!r} is not installed; there are {names}")
    total = sum(weights.values())
    if total <= 0:
        raise UnknownStrategy("the ensemble has no strategy with a weight above 0")
    return {name: weight / total for name, weight in weights.items() if weight > 0}


def pool(scores: Sequence[float], pooling: Pooling, quantile: float) -> float:
    """One number in [0, 1] of a draft's scores; 0 for a draft without tokens."""
    if not scores:
        return 0.0
    match pooling:
        case Pooling.MEAN:
            pooled = math.fsum(scores) / len(scores)
        case Pooling.LOG_MEAN:
            pooled = math.exp(math.fsum(math.log(max(score, LOWEST_SCORE)) for score in scores) / len(scores))
        case Pooling.QUANTILE:
            pooled = float(np.quantile(scores, quantile))
        case Pooling.MINIMUM:
            pooled = min(scores)
    return min(1.0, max(0.0, pooled))


def assess(figures: TokenFigures, rule: ConfidenceRule) -> ConfidenceReport:
    """How sure the draft is and of what that is made. Raises `UnknownStrategy`."""
    known = strategies()
    weights = members(rule)
    parts = {name: pool(known[name](figures), rule.pooling, rule.quantile) for name in weights}
    value = min(1.0, math.fsum(weights[name] * part for name, part in parts.items()))
    return ConfidenceReport(
        value=value, threshold=rule.threshold, strategy=rule.strategy, parts=parts, sure=value >= rule.threshold
    )
