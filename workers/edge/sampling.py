"""The next token from one row of logits: bias, penalties, temperature, top-k and top-p.

Pure numpy. The steps run in vLLM's order, so that an option means the same on both tiers. Grammars mask the row before
it gets here (`workers.edge.constraint.Grammar`).
"""

from collections import Counter
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from schemas.requests import Sampling
from workers.edge.token_metrics import Floats, largest

#: Lower temperatures above 0 are raised to this one, as in vLLM: logits are divided by it.
MIN_TEMPERATURE = 0.01
#: `top_p` looks at this many of the likeliest tokens first; only if they do not reach it is the whole row sorted.
TOP_P_CANDIDATES = 64


class Sampler:
    """Samples the tokens of one request. Its random state survives a preemption."""

    def __init__(self, sampling: Sampling, prompt: Iterable[int]) -> None:
        self._sampling = sampling
        self._temperature = max(sampling.temperature, MIN_TEMPERATURE)
        self._random = np.random.default_rng(sampling.seed)
        self._repeats = sampling.repetition_penalty != 1.0
        #: How often each token of the answer was written, and which tokens the prompt or the answer has.
        self._counts: Counter[int] = Counter()
        self._seen = set(prompt) if self._repeats else set()
        self._penalises = bool(sampling.frequency_penalty or sampling.presence_penalty)
        self._adjusts = bool(sampling.logit_bias) or self._repeats or self._penalises
        #: Whether the token is the argmax of the raw row.
        self.takes_argmax = sampling.greedy and not self._adjusts

    def sample(self, logits: Floats) -> int:
        """The next token; the row is not changed. `accept` must be told which token was written in the end."""
        row = self._adjusted(logits) if self._adjusts else logits
        return int(row.argmax()) if self._sampling.greedy else self._draw(row)

    def accept(self, token: int) -> None:
        """Count a written token for the penalties."""
        self._counts[token] += 1
        if self._repeats:
            self._seen.add(token)

    def _adjusted(self, logits: Floats) -> Floats:
        sampling, row = self._sampling, logits.copy()
        for token, bias in sampling.logit_bias.items():
            row[token] += bias
        if self._seen:
            seen = np.fromiter(self._seen, np.intp, len(self._seen))
            values, penalty = row[seen], sampling.repetition_penalty
            row[seen] = np.where(values > 0, values / penalty, values * penalty)
        if self._counts and self._penalises:
            written = np.fromiter(self._counts.keys(), np.intp, len(self._counts))
            counts = np.fromiter(self._counts.values(), np.float32, len(self._counts))
            row[written] -= sampling.frequency_penalty * counts + sampling.presence_penalty
        return row

    def _draw(self, row: Floats) -> int:
        sampling = self._sampling
        tokens: npt.NDArray[np.intp] | None = None
        if sampling.top_k:
            values, tokens = largest(row, min(sampling.top_k, len(row)))
            probabilities = _softmax(values, self._temperature)
            probabilities = probabilities[: _nucleus_size(probabilities, sampling.top_p)]
        else:
            probabilities = _softmax(row, self._temperature)
            if sampling.top_p < 1.0:
                tokens = _nucleus(row, probabilities, sampling.top_p)
                probabilities = probabilities[tokens]
        cumulated = np.cumsum(probabilities)
        place = int(np.searchsorted(cumulated, self._random.random() * cumulated[-1], side="right"))
        place = min(place, len(probabilities) - 1)
        return place if tokens is None else int(tokens[place])


def _softmax(logits: Floats, temperature: float) -> npt.NDArray[np.float64]:
    weights = np.exp((logits - logits.max()).astype(np.float64) / temperature)
    total: npt.NDArray[np.float64] = weights / weights.sum()
    return total


def _nucleus_size(probabilities: npt.NDArray[np.float64], top_p: float) -> int:
    """The number of probabilities, sorted in descending order, in the smallest set that reaches `top_p`; at least 1."""
    return min(len(probabilities), int(np.searchsorted(np.cumsum(probabilities), top_p, side="left")) + 1)


def _nucleus(row: Floats, probabilities: npt.NDArray[np.float64], top_p: float) -> npt.NDArray[np.intp]:
    """The smallest set of the likeliest tokens that reaches `top_p`, likeliest first."""
    _, tokens = largest(row, min(TOP_P_CANDIDATES, len(row)))
    if probabilities[tokens].sum() < top_p:
        tokens = np.argsort(-row, kind="stable")
    return tokens[: _nucleus_size(probabilities[tokens], top_p)]
