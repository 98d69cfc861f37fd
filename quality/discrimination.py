"""Whether scores tell good drafts from worse ones, and whether probabilities mean what they say."""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Discrimination:
    """The area under the ROC curve with its confidence interval."""

    auroc: float
    low: float
    high: float


@dataclass(frozen=True)
class ReliabilityBin:
    """The labels whose probability lies in [low, high): what was promised and what came."""

    low: float
    high: float
    count: int
    #: The mean probability.
    promised: float
    #: The share of good ones, with its Wilson interval.
    good: float
    good_low: float
    good_high: float


def discrimination(scores: npt.ArrayLike, good: npt.ArrayLike, *, certainty: float = 0.95) -> Discrimination | None:
    """The probability that a good draft scores higher than a worse one; None where all labels are the same.

    Scores and labels have shape (labels,). The interval is DeLong's (Biometrics 1988); memory grows with the product of
    the two kinds' numbers.
    """
    values, is_good = np.asarray(scores, np.float64), np.asarray(good, np.bool_)
    high, low = values[is_good], values[~is_good]
    if not len(high) or not len(low):
        return None
    wins = (high[:, None] > low) + (high[:, None] == low) / 2
    area = float(wins.mean())
    variance = wins.mean(axis=1).var() / len(high) + wins.mean(axis=0).var() / len(low)
    reach = NormalDist().inv_cdf((1 + certainty) / 2) * math.sqrt(variance)
    return Discrimination(area, max(0.0, area - reach), min(1.0, area + reach))


def can_tell(found: Discrimination | None) -> bool:
    """Whether the scores are known to tell good drafts from worse ones: the whole interval lies above 0.5."""
    return found is not None and found.low > 0.5


def calibration_error(probabilities: npt.ArrayLike, good: npt.ArrayLike) -> float:
    """The expected calibration error over ten bins of equal width (Guo et al., ICML 2017); 0 without labels.

    Chance alone makes it positive: see `chance_error`.
    """
    bins = reliability(probabilities, good)
    total = sum(each.count for each in bins)
    return sum(each.count * abs(each.promised - each.good) for each in bins) / total if total else 0.0


def chance_error(probabilities: npt.ArrayLike, *, draws: int = 400, seed: int = 0) -> float:
    """What a perfect calibrator would show: the mean `calibration_error` of labels drawn by these probabilities."""
    chance = np.asarray(probabilities, np.float64)
    rng = np.random.default_rng(seed)
    return float(np.mean([calibration_error(chance, rng.random(len(chance)) < chance) for _ in range(draws)]))


def reliability(
    probabilities: npt.ArrayLike, good: npt.ArrayLike, *, bins: int = 10, certainty: float = 0.95
) -> tuple[ReliabilityBin, ...]:
    """The bins that have labels, of equal width."""
    chance, is_good = np.asarray(probabilities, np.float64), np.asarray(good, np.float64)
    place = np.minimum((chance * bins).astype(int), bins - 1)
    found = []
    for at in np.unique(place):
        inside = place == at
        low, high = wilson(float(is_good[inside].sum()), int(inside.sum()), certainty)
        found.append(
            ReliabilityBin(
                at / bins,
                (at + 1) / bins,
                int(inside.sum()),
                float(chance[inside].mean()),
                float(is_good[inside].mean()),
                low,
                high,
            )
        )
    return tuple(found)


def wilson(good: float, of: float, certainty: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a share."""
    z = NormalDist().inv_cdf((1 + certainty) / 2)
    share, spread = good / of, z * z / of
    centre, reach = share + spread / 2, z * math.sqrt(share * (1 - share) / of + spread / (4 * of))
    return max(0.0, (centre - reach) / (1 + spread)), min(1.0, (centre + reach) / (1 + spread))
