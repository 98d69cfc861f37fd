"""How sure a draft is: strategies over per-token figures, pooled to one number in [0, 1].

A strategy turns figures into one score in [0, 1] per token; the rule says how the scores are pooled over the draft.
Besides the built-in strategies there are those that other packages announce as entry points (group
`firstdraft.confidence_strategies`): functions from `TokenFigures` to one score per token. They are a user's code, so
they run on a thread of their own and for a limited time; never call `assess` on an engine's thread. A strategy that
computes in Python still competes for the interpreter's lock while it runs.

Sources: Hendrycks and Gimpel (ICLR 2017) for the maximum probability; Guo et al. (ICML 2017) for temperature scaling;
Malinin and Gales (ICLR 2021) for entropy and length normalisation; Scheffer et al. (IDA 2001) for the margin; Gupta et
al. (ICLR 2024) for quantiles over tokens.
"""

import ctypes
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from schemas.drafts import TokenFigures
from schemas.requests import ConfidenceRule, Pooling, split_member
from schemas.results import ConfidenceReport, FailureKind
from workers.runtime.failures import RequestRefused

Strategy = Callable[[TokenFigures], Sequence[float]]
Scores = npt.NDArray[np.float64]

#: Where packages announce strategies.
ENTRY_POINT_GROUP = "firstdraft.confidence_strategies"
#: The strategy that is a weighted mean of others.
ENSEMBLE = "ensemble"
#: `log_mean` takes the logarithm of no lower score: one impossible token leaves the draft unsure, not undefined.
LOWEST_SCORE = 1e-9
#: Seconds that another package's strategy may take over one draft, its import included. Its request fails after that.
MAX_STRATEGY_S = 10.0


class UnknownStrategy(ValueError):
    """A confidence strategy that no installed package announces, or an ensemble without members."""


class StrategyFailed(RequestRefused):
    """Another package's strategy could not be imported, raised, returned no numbers, or took too long."""

    def __init__(self, message: str) -> None:
        super().__init__(FailureKind.ENGINE_ERROR, message)


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
    """Total probability of the k likeliest tokens: low where many tokens were plausible."""
    return figures.top_k_mass


def margin(figures: TokenFigures) -> Sequence[float]:
    """Probability of the likeliest token minus that of the second (Scheffer et al., IDA 2001)."""
    return figures.margin


#: Strategies that only read columns: they cannot fail, and are cheap enough for the engine's thread.
BUILT_IN: Mapping[str, Strategy] = {
    strategy.__name__: strategy for strategy in (max_prob, entropy, temperature, top_k_agg, margin)
}


@cache
def installed() -> Mapping[str, EntryPoint]:
    """Every announced strategy by name. Read once per process; imports none of them."""
    return {entry.name: entry for entry in entry_points(group=ENTRY_POINT_GROUP)}


class Member(NamedTuple):
    """One part of a rule's confidence: a strategy's scores, pooled in one way."""

    #: As the rule names it, and as reports do.
    name: str
    strategy: str
    pooling: Pooling
    weight: float


def members(rule: ConfidenceRule) -> Sequence[Member]:
    """The parts of the rule's confidence, with weights that sum to 1. Raises `UnknownStrategy`."""
    weights = dict(rule.weights) if rule.strategy == ENSEMBLE else {rule.strategy: 1.0}
    known = {*BUILT_IN, *installed()}
    found = []
    for name, weight in weights.items():
        strategy, pooling = split_member(name)
        if strategy not in known:
            names = ", ".join(sorted([*known, ENSEMBLE]))
            raise UnknownStrategy(f"confidence strategy {strategy!r} is not installed; there are {names}")
        try:
            found.append(Member(name, strategy, rule.pooling if pooling is None else Pooling(pooling), weight))
        except ValueError as error:
            raise UnknownStrategy(f"{name!r}: {pooling!r} is no pooling; there are {', '.join(Pooling)}") from error
    total = sum(weights.values())
    if total <= 0:
        raise UnknownStrategy("the ensemble has no strategy with a weight above 0")
    return [member._replace(weight=member.weight / total) for member in found if member.weight > 0]


def pool(scores: npt.ArrayLike, pooling: Pooling, quantile: float) -> Scores:
    """Scores of shape (..., tokens), pooled over the tokens; 0 where there are no tokens."""
    values = np.asarray(scores, np.float64)
    num_tokens = values.shape[-1]
    pooled: Scores
    if not num_tokens:
        return np.zeros(values.shape[:-1])
    match pooling:
        case Pooling.MEAN:
            pooled = np.add.reduce(values, axis=-1) / num_tokens  # as `mean` does it, at a third of the time
        case Pooling.LOG_MEAN:
            pooled = np.exp(np.add.reduce(np.log(np.maximum(values, LOWEST_SCORE)), axis=-1) / num_tokens)
        case Pooling.QUANTILE:
            pooled = np.quantile(values, quantile, axis=-1)
        case Pooling.MINIMUM:
            pooled = values.min(axis=-1)
    return pooled


def assess(figures: TokenFigures, rule: ConfidenceRule) -> ConfidenceReport:
    """How sure the draft is, with the parts of that number. Raises `UnknownStrategy` and `StrategyFailed`.

    Blocks for as long as another package's strategy takes, at most `MAX_STRATEGY_S` for each.
    """
    parts_of_rule = members(rule)
    scores = {name: _scores(name, figures) for name in {member.strategy for member in parts_of_rule}}
    # Another package's scores may be out of range, or NaN, which becomes 0 here: a draft is sure only for good reason.
    parts = {
        member.name: min(1.0, max(0.0, float(pool(scores[member.strategy], member.pooling, rule.quantile))))
        for member in parts_of_rule
    }
    value = min(1.0, math.fsum(member.weight * parts[member.name] for member in parts_of_rule))
    return ConfidenceReport(
        value=value, threshold=rule.threshold, strategy=rule.strategy, parts=parts, sure=value >= rule.threshold
    )


def _scores(name: str, figures: TokenFigures) -> npt.ArrayLike:
    strategy = BUILT_IN.get(name)
    return strategy(figures) if strategy is not None else _users_scores(installed()[name], figures, MAX_STRATEGY_S)


def _users_scores(entry: EntryPoint, figures: TokenFigures, limit_s: float) -> Scores:
    """The scores of another package's strategy. Raises `StrategyFailed`, after `limit_s` at the latest."""
    scores: Future[Scores] = Future()
    ending = threading.Lock()  # taken by the thread before it ends, so that no other thread has its identity until then

    def run() -> None:
        try:
            scores.set_result(np.array([float(score) for score in entry.load()(figures)]))
        except BaseException as error:  # noqa: BLE001 - a user's code may raise anything
            scores.set_exception(error)
        with ending:
            pass

    thread = threading.Thread(target=run, name=f"confidence-{entry.name}", daemon=True)
    thread.start()
    try:
        return scores.result(limit_s)
    except BaseException as error:
        with ending:
            slow = isinstance(error, TimeoutError) and not scores.done()
            if slow:  # ends a loop, which would hold up others at the GIL; a call that never returns keeps its thread
                ident = ctypes.c_ulong(thread.ident or 0)
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(SystemExit))
        reason = f"it took more than {limit_s:g} s" if slow else repr(error)
        raise StrategyFailed(f"confidence strategy {entry.name!r} failed: {reason}") from error
