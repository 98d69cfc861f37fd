"""Figures per token from raw logits: one pass over the rows of a step, nothing of the size of the vocabulary kept.

Pure numpy; knows no tokens' text, no requests and no engine.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.intp]

#: Logits in a block, of which only the largest is looked at when the k largest of a row are sought.
BLOCK = 256


@dataclass(frozen=True, slots=True)
class Row:
    """Figures of one token, as in `schemas.drafts.TokenFigures`, and what its log-probabilities need."""

    probability: float
    scaled_probability: float
    margin: float
    normalised_entropy: float
    top_k_mass: float
    #: Natural logarithm of the sum of exp(logit): a logit minus this is a log-probability.
    log_total: float


class Meter:
    """Measures rows of one vocabulary. Holds scratch memory of one row: not for two threads at once."""

    def __init__(self, vocab_size: int, *, temperature: float, top_k: int) -> None:
        self._scratch = np.empty(vocab_size, np.float32)
        self._weights = np.empty(vocab_size, np.float32)
        self._inverse_temperature = np.float32(1.0 / temperature)
        self._top_k = min(max(top_k, 2), vocab_size)
        self._mass_k = min(top_k, vocab_size)
        self._log_size = float(np.log(vocab_size))

    def measure(self, logits: Floats, chosen: int) -> Row:
        """The figures of token `chosen` in a row of raw logits."""
        best, _ = largest(logits, self._top_k)
        top = float(best[0])
        shifted = np.subtract(logits, best[0], out=self._scratch)
        weights = np.exp(shifted, out=self._weights)
        total = float(weights.sum())
        entropy = np.log(total) - float(np.einsum("i,i->", weights, shifted)) / total
        best_weights = np.exp(best - best[0])
        own = float(logits[chosen]) - top
        scaled = np.multiply(shifted, self._inverse_temperature, out=self._weights)
        scaled_total = float(np.exp(scaled, out=self._weights).sum())
        return Row(
            probability=min(1.0, float(np.exp(own)) / total),
            scaled_probability=min(1.0, float(np.exp(own * self._inverse_temperature)) / scaled_total),
            margin=float(best_weights[0] - best_weights[1]) / total,
            normalised_entropy=min(1.0, max(0.0, float(entropy) / self._log_size)),
            top_k_mass=min(1.0, float(best_weights[: self._mass_k].sum()) / total),
            log_total=top + float(np.log(total)),
        )


def largest(row: Floats, k: int) -> tuple[Floats, Ints]:
    """The k largest of a row, largest first, and where they are; exact. Reads the row once.

    The k largest are all in the k blocks with the largest maxima: any value elsewhere has k blocks with a larger one.
    """
    whole = len(row) // BLOCK
    if whole <= k:
        places = np.argpartition(row, len(row) - k)[len(row) - k :]
    else:
        blocks = row[: whole * BLOCK].reshape(whole, BLOCK)
        maxima = blocks.max(axis=1)
        chosen = np.argpartition(maxima, whole - k)[whole - k :]
        inside = (chosen[:, None] * BLOCK + np.arange(BLOCK)).ravel()
        candidates = np.concatenate([inside, np.arange(whole * BLOCK, len(row))])
        values = row[candidates]
        places = candidates[np.argpartition(values, len(values) - k)[len(values) - k :]]
    order = np.argsort(-row[places], kind="stable")
    places = places[order]
    return row[places], places
