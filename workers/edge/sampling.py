"""Which token comes next: biases, penalties, temperature, top-k and top-p over one row of logits.

Pure numpy. The order is vLLM's, so that both tiers mean the same by an option: bias, penalties, temperature, top-k,
top-p. Grammars mask the row before it gets here (`workers.edge.constraint.Grammar`).
"""

from collections import Counter
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from schemas.requests import Sampling
from workers.edge.token_metrics import Floats, largest

#: Lower temperatures above 0 mean this one, as in vLLM: what they are divided by must not come near 0.
LEAST_TEMPERATURE = 0.01
#: Likeliest tokens that are looked at first when `top_p` cuts; only if they do not reach it is the whole row sorted.
TOP_P_CANDIDATES = 64


class Chooser:
    """Chooses the tokens of one request. Its random numbers go on over a preemption."""

    def __init__(self, sampling: Sampling, prompt: Iterable[int]) -> None:
        self._sampling = sampling
        self._temperature = max(sampling.temperature, LEAST_TEMPERATURE)
        self._random = np.random.default_rng(sampling.seed)
        self._written: Counter[int] = Counter()
        self._seen = set(prompt) if sampling.repetition_penalty != 1.0 else set()
        penalties = sampling.repetition_penalty != 1.0 or sampling.frequency_penalty or sampling.presence_penalty
        #: Whether the likeliest token of the raw row is the choice.
        self.takes_likeliest = sampling.greedy and not penalties and not sampling.logit_bias

    def choose(self, logits: Floats) -> int:
        """The next token. The row is not changed; `note` must be told what was written in the end."""
        row = self._adjusted(logits)
        if self._sampling.greedy:
            return int(row.argmax())
        return self._draw(row)

    def note(self, token: int) -> None:
        """Count a token that was written, for the penalties."""
        self._written[token] += 1
        if self._sampling.repetition_penalty != 1.0:
            self._seen.add(token)

    def _adjusted(self, logits: Floats) -> Floats:
        sampling = self._sampling
        if self.takes_likeliest or (sampling.greedy is False and not self._has_adjustments()):
            return logits
        row = logits.copy()
        for token, bias in sampling.logit_bias.items():
            row[token] += bias
        if sampling.repetition_penalty != 1.0 and self._seen:
            seen = np.fromiter(self._seen, np.intp, len(self._seen))
            values = row[seen]
            row[seen] = np.where(values > 0, values / sampling.repetition_penalty, values * sampling.repetition_penalty)
        if self._written and (sampling.frequency_penalty or sampling.presence_penalty):
            written = np.fromiter(self._written.keys(), np.intp, len(self._written))
            counts = np.fromiter(self._written.values(), np.float32, len(self._written))
            row[written] -= sampling.frequency_penalty * counts + sampling.presence_penalty
        return row

    def _has_adjustments(self) -> bool:
        sampling = self._sampling
        changes = sampling.logit_bias or sampling.frequency_penalty or sampling.presence_penalty
        return bool(changes) or sampling.repetition_penalty != 1.0

    def _draw(self, row: Floats) -> int:
        sampling = self._sampling
        if sampling.top_k:
            values, places = largest(row, min(sampling.top_k, len(row)))
            probabilities = _softmax(values, self._temperature)
            kept = _nucleus(probabilities, sampling.top_p)
        elif sampling.top_p < 1.0:
            probabilities = _softmax(row, self._temperature)
            places = _likeliest_until(row, probabilities, sampling.top_p)
            probabilities = probabilities[places]
            kept = len(places)
        else:
            probabilities, places, kept = _softmax(row, self._temperature), None, len(row)
        cumulated = np.cumsum(probabilities[:kept])
        place = int(np.searchsorted(cumulated, self._random.random() * cumulated[-1], side="right"))
        place = min(place, kept - 1)
        return place if places is None else int(places[place])


def _softmax(logits: Floats, temperature: float) -> npt.NDArray[np.float64]:
    weights = np.exp((logits - logits.max()).astype(np.float64) / temperature)
    total: npt.NDArray[np.float64] = weights / weights.sum()
    return total


def _nucleus(probabilities: npt.NDArray[np.float64], top_p: float) -> int:
    """How many of the probabilities, largest first, are the smallest set that reaches `top_p`; at least one."""
    return min(len(probabilities), int(np.searchsorted(np.cumsum(probabilities), top_p, side="left")) + 1)


def _likeliest_until(row: Floats, probabilities: npt.NDArray[np.float64], top_p: float) -> npt.NDArray[np.intp]:
    """Places of the smallest set of likeliest tokens that reaches `top_p`, likeliest first."""
    _, places = largest(row, min(TOP_P_CANDIDATES, len(row)))
    if probabilities[places].sum() < top_p:
        places = np.argsort(-row, kind="stable")
    return places[: _nucleus(probabilities[places], top_p)]
