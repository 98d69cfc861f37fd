"""Whether a draft that is still being written can become sure; if not, the rest of it would waste the edge's time.

A draft is given up on two grounds: a bound (even if every token to come scored 1, the pooled confidence would stay
below the threshold) or a collapse (the confidence over the last window is far below the threshold, and that of the
whole draft below it; a heuristic, not a proof). Either way the draft so far is unsure, so that it escalates once it is
assessed.

Only for rules of built-in strategies: scores are needed while the draft is written, on the engine's thread, where
another package's strategy could hold up every request. Pure.
"""

import math

import numpy as np

from config.settings import EarlyEscalationSettings
from schemas.drafts import TokenFigures
from schemas.requests import ConfidenceRule
from workers.edge.confidence import BUILT_IN, Scores, members, pool

#: Tokens between two checks: at every token, scoring would cost more than it saves.
TOKENS_BETWEEN_CHECKS = 4


class EarlyEscalation:
    """Follows one draft of at most `max_tokens` tokens. The rule's strategies must be built in (`is_possible`)."""

    def __init__(self, rule: ConfidenceRule, settings: EarlyEscalationSettings, max_tokens: int) -> None:
        self._rule, self._settings = rule, settings
        parts = members(rule)
        self._strategies = [BUILT_IN[member.strategy] for member in parts]
        self._weights = np.array([member.weight for member in parts])
        #: The parts that are pooled in the same way, by their places.
        self._poolings = {
            pooling: [place for place, member in enumerate(parts) if member.pooling is pooling]
            for pooling in {member.pooling for member in parts}
        }
        #: Shape (parts, `max_tokens`). A token that is not written yet has the best score, 1.
        self._scores: Scores = np.ones((len(parts), max_tokens))
        #: Tokens that have been scored.
        self.num_scored = 0

    @staticmethod
    def is_possible(rule: ConfidenceRule) -> bool:
        """Whether all of the rule's strategies are built in. Raises `UnknownStrategy`."""
        return all(member.strategy in BUILT_IN for member in members(rule))

    def is_due(self, num_tokens: int) -> bool:
        """Whether a draft of `num_tokens` tokens is to be checked."""
        return num_tokens >= self._settings.min_tokens and num_tokens - self.num_scored >= TOKENS_BETWEEN_CHECKS

    def should_escalate(self, new: TokenFigures) -> bool:
        """Score the tokens that follow the first `num_scored`; whether to give the draft up."""
        end = self.num_scored + len(new)
        for scores, strategy in zip(self._scores, self._strategies, strict=True):
            scores[self.num_scored : end] = strategy(new)
        self.num_scored = end
        return self.upper_bound() < self._rule.threshold or self._has_collapsed()

    def upper_bound(self) -> float:
        """The highest confidence that the draft can still reach.

        Every pooling grows with each further score of 1, so that the longest possible draft gives the bound.
        """
        return self._confidence(self._scores)

    def _has_collapsed(self) -> bool:
        scored, window = self._scores[:, : self.num_scored], self._settings.window_tokens
        return (
            self.num_scored >= window
            and self._confidence(scored[:, -window:]) < self._settings.collapse_share * self._rule.threshold
            and self._confidence(scored) < self._rule.threshold
        )

    def _confidence(self, scores: Scores) -> float:
        return math.fsum(
            weighted
            for pooling, places in self._poolings.items()
            for weighted in self._weights[places] * pool(scores[places], pooling, self._rule.quantile)
        )
