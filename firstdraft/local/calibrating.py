"""Fits a calibration to labelled answers, and keeps it on the configured Redis server.

Takes and gives plain values, JSON and the server's own objects; the commands print them.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from broker.calibrations import CalibrationStore
from config.settings import ConfidenceSettings
from firstdraft.local.connection import configured_redis
from quality.bounds import clopper_pearson
from quality.calibrators import cross_fitted, fit_calibrator
from quality.discrimination import calibration_error, can_tell, discrimination
from quality.ensemble import fit_weights
from quality.labels import (
    Labelled,
    check_similarity,
    checker_for,
    judge_for,
    judged,
    label_expected,
    label_judged,
    label_verified,
    normalise,
    says_the_same,
)
from quality.samples import Array
from quality.thresholds import (
    Costs,
    lowest_threshold,
    risk_frontier,
    thinned,
    threshold_for_cloud_share,
    threshold_for_cost,
)
from schemas.calibration import Calibration, FrontierPoint, Goal, Label, Prices, Scope
from schemas.requests import Pooling, split_member

#: Fewer labels say too little to fit anything.
FEWEST_LABELS = 30
#: The strategy whose weights are fitted, and the one that it is in service.
FITTED, ENSEMBLE = "fitted", "ensemble"
#: The judge that is the cloud's own model.
CLOUD = "cloud"
#: The strategies whose members are asked for, beside the configured ones.
STRATEGIES = ("max_prob", "entropy", "temperature", "top_k_agg", "margin")
#: What the cloud is asked as a judge.
QUESTION = (
    "Two assistants were given the same request. Do their answers agree in everything that the request asks for?\n\n"
    "Request:\n{prompt}\n\nFirst answer:\n{draft}\n\nSecond answer:\n{answer}\n\nReply with Yes or No alone."
)


class CannotCalibrate(ValueError):
    """There is nothing to fit; the message says why."""


@dataclass(frozen=True)
class Answered:
    """One prompt, answered by each tier alone."""

    prompt: str
    draft: str
    answer: str
    #: The confidence's members by name.
    parts: Mapping[str, float]
    #: (edge, cloud), in tokens and in seconds.
    tokens: tuple[float, float]
    seconds: tuple[float, float]
    expected: Any = None
    checker: str | None = None
    #: The cloud's probability that both agree, where it was asked.
    agree: float | None = None


@dataclass(frozen=True)
class Choice:
    """What is to be fitted, and for what."""

    edge_model: str
    cloud_model: str
    traffic_class: str | None
    #: A strategy's name, `ensemble`, or `fitted`.
    strategy: str
    audited_by: str
    max_risk: float | None = None
    certainty: float = 0.9
    cloud_share: float | None = None
    #: Per token or per second.
    prices: Mapping[str, Any] | None = None
    #: A user's judge, by name, or `cloud`.
    judge: str | None = None


@contextmanager
def calibration_store() -> Iterator[CalibrationStore]:
    """The calibrations on the configured Redis server, or on the embedded one."""
    with configured_redis() as redis:
        yield CalibrationStore(redis)


def read_calibration(file: Path) -> Calibration:
    """A calibration that was written as JSON. Raises `ValidationError`."""
    return Calibration.model_validate_json(file.read_bytes())


def check_line(expected: Any, checker: str | None) -> None:
    """Raise `UnknownRule` for a checker that is not installed."""
    if expected is not None:
        checker_for(expected, checker)


def check_choice(strategy: str, audited_by: str, judge: str | None, settings: ConfidenceSettings) -> None:
    """Raise `CannotCalibrate` or `UnknownRule` for what `fit` would refuse, before any answer is paid for."""
    check_similarity(audited_by)
    if judge not in {None, CLOUD}:
        judge_for(judge)
    known = dict.fromkeys(split_member(name)[0] for name in members(settings))
    if strategy not in {FITTED, ENSEMBLE, *known}:
        raise CannotCalibrate(f"strategy {strategy!r} must be {FITTED}, {ENSEMBLE}, or one of {', '.join(known)}")


def members(settings: ConfidenceSettings) -> list[str]:
    """The members that drafts are to be measured with: each strategy with each pooling."""
    configured = settings.weights if settings.strategy == ENSEMBLE else {settings.strategy: 1.0}
    strategies = dict.fromkeys([*STRATEGIES, *(split_member(name)[0] for name in configured)])
    return [f"{strategy}:{pooling}" for strategy in strategies for pooling in Pooling]


def needs_judge(draft: str, answer: str, expected: Any) -> bool:
    """Whether only a judge can say if a draft is worse: nothing is expected, and the texts differ."""
    return expected is None and normalise(draft) != normalise(answer)


def question(prompt: str, draft: str, answer: str) -> str:
    """What the cloud is asked as a judge."""
    return QUESTION.format(prompt=prompt, draft=draft, answer=answer)


def agreement(first: Sequence[tuple[str, float]]) -> float:
    """The probability of Yes against No, from the log-probabilities of the likeliest first tokens; 0.5 for neither."""
    mass = {"yes": 0.0, "no": 0.0}
    for token, logprob in first:
        if (word := token.strip().casefold()) in mass:
            mass[word] += math.exp(logprob)
    total = sum(mass.values())
    return mass["yes"] / total if total else 0.5


def fit(answered: Sequence[Answered], choice: Choice, settings: ConfidenceSettings) -> Calibration:
    """The calibration. Raises `CannotCalibrate`, `UnknownRule` and `CheckFailed`."""
    if len(answered) < FEWEST_LABELS:
        raise CannotCalibrate(f"there are {len(answered)} labels; fewer than {FEWEST_LABELS} say nothing about a risk")
    check_similarity(choice.audited_by)
    found = [_labelled(each, choice) for each in answered]
    worse = np.array([each.worse for each in found])
    weights, scores = _scores(answered, ~worse, choice.strategy, settings)
    area = discrimination(scores, ~worse)
    costs = _costs(answered, choice)
    frontier = risk_frontier(scores, worse, choice.certainty, costs)
    prices = None if choice.prices is None else Prices.model_validate(dict(choice.prices))
    goal = Goal(max_risk=choice.max_risk, certainty=choice.certainty, cloud_share=choice.cloud_share, prices=prices)
    # Where all drafts are as good, none has to be told from another.
    threshold = _threshold(scores, worse, frontier, goal, costs) if can_tell(area) or not worse.any() else None
    return Calibration(
        scope=Scope(
            edge_model=choice.edge_model,
            cloud_model=choice.cloud_model,
            strategy=ENSEMBLE if choice.strategy == FITTED else choice.strategy,
            traffic_class=choice.traffic_class,
        ),
        weights=weights,
        pooling=Pooling(settings.pooling),
        quantile=settings.quantile,
        goal=goal,
        threshold=threshold,
        calibrator=fit_calibrator(scores, ~worse),
        frontier=_published(frontier, threshold),
        auroc=area.auroc if area else None,
        auroc_low=area.low if area else None,
        auroc_high=area.high if area else None,
        ece=calibration_error(cross_fitted(scores, ~worse), ~worse),
        labels=tuple(
            Label(
                score=float(score),
                parts=dict(each.parts),
                worse=label.worse,
                worth=label.worth,
                source=label.source,
                edge_cost=each.tokens[0] if costs_in_tokens(choice) else each.seconds[0],
                cloud_cost=each.tokens[1] if costs_in_tokens(choice) else each.seconds[1],
            )
            for score, each, label in zip(scores.tolist(), answered, found, strict=True)
        ),
        labelled_by=", ".join(sorted({label.source for label in found})),
        audited_by=choice.audited_by,
        audit_risk=_audit_risk(answered, scores, threshold, choice),
        made_with={"firstdraft": version("firstdraft"), "prompts": _digest(answered)},
    )


def costs_in_tokens(choice: Choice) -> bool:
    """Whether costs are counted in tokens of answers, and not in seconds."""
    return choice.prices is None or choice.prices.get("per", "token") == "token"


def described(calibration: Calibration) -> str:
    """What the calibration does, in a sentence or two."""
    number = len(calibration.labels)
    if calibration.threshold is None:
        if calibration.auroc_low is not None and calibration.auroc_low <= 0.5:
            return (
                "Keeps nothing: the confidence cannot tell good drafts from worse ones (AUROC "
                f"{calibration.auroc:.2f}, 95 % interval {calibration.auroc_low:.2f} to {calibration.auroc_high:.2f}, "
                f"from {number} labels)."
            )
        if calibration.goal.max_risk is None:
            return f"Keeps nothing: on these {number} labels, the cloud alone is the best choice."
        return f"Keeps nothing: no threshold keeps the promise on these {number} labels."
    at = point_at(calibration, calibration.threshold)
    saved = "" if at.cost_saved is None else f"; it saves {at.cost_saved:.0%} of the cost of the cloud alone"
    return (
        f"Threshold {calibration.threshold:.4f} keeps {at.kept:.0%} of drafts{saved}. With "
        f"{calibration.goal.certainty:.0%} certainty, from {number} labels, at most {at.bound:.1%} of answers are kept "
        "drafts that are worse than the cloud's answer."
    )


def point_at(calibration: Calibration, threshold: float) -> FrontierPoint:
    """What a threshold of the calibration does: the point of the frontier that keeps no more.

    Exact for the calibration's own threshold.
    """
    within = [point for point in calibration.frontier if point.threshold >= threshold]
    return within[-1] if within else FrontierPoint(threshold=threshold, kept=0.0, risk=0.0, bound=0.0, cost_saved=0.0)


def _published(frontier: tuple[FrontierPoint, ...], threshold: float | None) -> tuple[FrontierPoint, ...]:
    """The frontier without points that no promise needs, but with the chosen one, which a budget may have picked."""
    needed = {point.threshold for point in thinned(frontier)} | {threshold}
    return tuple(point for point in frontier if point.threshold in needed)


def _labelled(each: Answered, choice: Choice) -> Labelled:
    if each.expected is not None:
        return label_expected(each.draft, each.answer, each.expected, each.checker)
    if choice.judge is None or not needs_judge(each.draft, each.answer, each.expected):
        return label_verified(each.draft, each.answer, similarity=choice.audited_by)
    if each.agree is not None:
        return label_judged(each.agree)
    return label_judged(judged(choice.judge, each.prompt, each.draft, each.answer))


def _scores(
    answered: Sequence[Answered], good: "np.typing.NDArray[np.bool_]", strategy: str, settings: ConfidenceSettings
) -> tuple[dict[str, float], Array]:
    """The weights in service, and each draft's score by them."""
    names = sorted(answered[0].parts)
    table = np.array([[each.parts[name] for name in names] for each in answered])
    if strategy == FITTED:
        fitted = fit_weights(table, good)
        weights = {name: float(weight) for name, weight in zip(names, fitted, strict=True) if weight > 0}
    elif strategy == ENSEMBLE:
        weights = {name: weight for name, weight in settings.weights.items() if weight > 0}
    else:
        weights = {strategy: 1.0}
    total = sum(weights.values())
    shares = {}
    for name, weight in weights.items():
        member = name if split_member(name)[1] is not None else f"{name}:{settings.pooling}"
        if member not in names:
            raise CannotCalibrate(f"the drafts were not measured by {name!r}")
        shares[name] = (weight / total, member)
    # To the last bit as edge workers do it: a draft whose score is the threshold must not fall below it in service.
    scores = [min(1.0, math.fsum(share * each.parts[member] for share, member in shares.values())) for each in answered]
    return weights if strategy in {FITTED, ENSEMBLE} else {}, np.array(scores)


def _costs(answered: Sequence[Answered], choice: Choice) -> Costs:
    in_tokens = costs_in_tokens(choice)
    edge, cloud = ([each.tokens[tier] if in_tokens else each.seconds[tier] for each in answered] for tier in (0, 1))
    if choice.prices is None:
        return Costs(cloud=cloud)
    price = {tier: float(choice.prices[tier]) for tier in ("edge", "cloud")}
    return Costs(cloud=[price["cloud"] * each for each in cloud], edge=[price["edge"] * each for each in edge])


def _threshold(
    scores: Array,
    worse: "np.typing.NDArray[np.bool_]",
    frontier: tuple[FrontierPoint, ...],
    goal: Goal,
    costs: Costs,
) -> float | None:
    if goal.cloud_share is not None:
        return threshold_for_cloud_share(scores, goal.cloud_share)
    if goal.prices is not None:
        # The costs are prices already.
        unit = goal.prices.model_copy(update={"edge": 1.0, "cloud": 1.0})
        return threshold_for_cost(scores, worse, costs, unit)
    return lowest_threshold(frontier, goal.max_risk or 0.0)


def _audit_risk(answered: Sequence[Answered], scores: Array, threshold: float | None, choice: Choice) -> float | None:
    """The bound of the share of answers that audits would call worse at the threshold."""
    if threshold is None:
        return None
    differs = sum(
        score >= threshold and not says_the_same(each.draft, each.answer, choice.audited_by, None)
        for score, each in zip(scores.tolist(), answered, strict=True)
    )
    return clopper_pearson(differs, len(answered), choice.certainty)


def _digest(answered: Sequence[Answered]) -> str:
    return hashlib.sha256(json.dumps([each.prompt for each in answered]).encode()).hexdigest()[:16]
