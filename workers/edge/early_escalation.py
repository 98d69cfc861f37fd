"""Whether a draft in the making can still become sure; if not, its rest is a waste of edge time.

Pure. Two grounds: proof (even if every token to come scored 1, the pooled confidence would stay below the threshold)
and collapse (the confidence of the last window is far below the threshold, and that of the whole draft below it; a
judgement, not a proof). Either way the draft so far is unsure, so whoever assesses it escalates it.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from config.settings import EarlyEscalationSettings
from schemas.drafts import TokenFigures
from schemas.requests import ConfidenceRule, Pooling
from workers.edge.confidence import LOWEST_SCORE, members, pool, strategies

#: Tokens between two looks: scoring costs more than it could save if it were done at every token.
TOKENS_BETWEEN_LOOKS = 4


class Outlook:
    """Follows one draft that may have up to `max_tokens` tokens. Raises `UnknownStrategy`."""

    def __init__(self, rule: ConfidenceRule, settings: EarlyEscalationSettings, max_tokens: int) -> None:
        self._rule, self._settings, self._max_tokens = rule, settings, max_tokens
        self._weights = members(rule)
        self._scores: dict[str, list[float]] = {name: [] for name in self._weights}

    @property
    def num_seen(self) -> int:
        """Tokens that were looked at."""
        return len(next(iter(self._scores.values())))

    def is_due(self, num_tokens: int) -> bool:
        """Whether it is time to look at a draft of so many tokens."""
        return num_tokens >= self._settings.min_tokens and num_tokens - self.num_seen >= TOKENS_BETWEEN_LOOKS

    def is_hopeless(self, new: TokenFigures) -> bool:
        """Take in the figures of the tokens after `num_seen`; whether the draft should be given up."""
        for name, scores in self._scores.items():
            scores.extend(min(1.0, max(0.0, score)) for score in strategies()[name](new))
        return self.best_possible() < self._rule.threshold or self._has_collapsed()

    def best_possible(self) -> float:
        """The highest confidence that the draft can still reach, each further token scoring 1 at best.

        Each pooling grows with every 1 that is appended, so the bound is taken at the greatest length.
        """
        rest = max(0, self._max_tokens - self.num_seen)
        return self._weigh({name: _best_pool(scores, rest, self._rule) for name, scores in self._scores.items()})

    def _has_collapsed(self) -> bool:
        window = self._settings.window_tokens
        if self.num_seen < window or self._confidence(window) >= self._settings.collapse_share * self._rule.threshold:
            return False
        return self._confidence(self.num_seen) < self._rule.threshold

    def _confidence(self, num_last: int) -> float:
        """Of so many last tokens."""
        rule = self._rule
        return self._weigh(
            {name: pool(scores[-num_last:], rule.pooling, rule.quantile) for name, scores in self._scores.items()}
        )

    def _weigh(self, parts: Mapping[str, float]) -> float:
        return math.fsum(self._weights[name] * part for name, part in parts.items())


def _best_pool(scores: Sequence[float], rest: int, rule: ConfidenceRule) -> float:
    total = len(scores) + rest
    match rule.pooling:
        case Pooling.MEAN:
            return (math.fsum(scores) + rest) / total
        case Pooling.LOG_MEAN:
            return math.exp(math.fsum(math.log(max(score, LOWEST_SCORE)) for score in scores) / total)
        case Pooling.QUANTILE:
            return float(np.quantile([*scores, *[1.0] * rest], rule.quantile))
        case Pooling.MINIMUM:
            return min(scores, default=1.0)
