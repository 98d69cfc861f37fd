"""Figures per token from raw logits: one pass over a row, which keeps nothing of the vocabulary's size.

Pure numpy; knows no tokens' text, no requests and no engine.
"""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.intp]

#: Logits per chunk of a pass: 32 KiB stay in the core's L1 cache. Sums over so few are exact enough in single
#: precision, and BLAS starts no threads of its own for them.
CHUNK = 8192
#: Logits per block when the k largest of a row are searched: of most blocks, only the maximum is read again.
BLOCK = 256


class TokenMetrics(NamedTuple):
    """Figures of one token, as in `schemas.drafts.TokenFigures`, and what its log-probabilities need."""

    probability: float
    scaled_probability: float
    margin: float
    normalised_entropy: float
    top_k_mass: float
    #: Natural logarithm of the sum of exp(logit): a logit minus this is a log-probability.
    log_total: float


class Meter:
    """Measures rows of logits over one vocabulary. Not thread-safe: it holds scratch memory."""

    def __init__(self, vocab_size: int, *, temperature: float, top_k: int) -> None:
        self._scratch = np.empty(CHUNK, np.float32)
        self._weights = np.empty(CHUNK, np.float32)
        self._ones = np.ones(CHUNK, np.float32)
        self._inverse_temperature = np.float32(1.0 / temperature)
        self._top_k = min(max(top_k, 2), vocab_size)
        self._mass_k = min(top_k, vocab_size)
        self._log_size = float(np.log(vocab_size))

    def measure(self, logits: Floats, chosen: int) -> TokenMetrics:
        """The figures of token `chosen` in a row of raw logits."""
        best, _ = largest(logits, self._top_k)
        total, scaled_total, weighted = self._totals(logits, best[0])
        log_total = math.log(total)
        best_weights = np.exp(best - best[0])
        own = float(logits[chosen] - best[0])
        return TokenMetrics(
            probability=min(1.0, math.exp(own) / total),
            scaled_probability=min(1.0, math.exp(own * self._inverse_temperature) / scaled_total),
            margin=float(best_weights[0] - best_weights[1]) / total,
            normalised_entropy=min(1.0, max(0.0, (log_total - weighted / total) / self._log_size)),
            top_k_mass=min(1.0, float(best_weights[: self._mass_k].sum()) / total),
            log_total=float(best[0]) + log_total,
        )

    def _totals(self, logits: Floats, top: np.float32) -> tuple[float, float, float]:
        """With x = logit - `top`: the sums of exp(x), of exp(x / temperature), and of x * exp(x)."""
        total = scaled_total = weighted = 0.0
        for start in range(0, len(logits), CHUNK):
            piece = logits[start : start + CHUNK]
            size = len(piece)
            shifted, weights, ones = self._scratch[:size], self._weights[:size], self._ones[:size]
            np.subtract(piece, top, out=shifted)
            np.exp(shifted, out=weights)
            total += float(np.dot(weights, ones))
            weighted += float(np.dot(weights, shifted))
            np.multiply(shifted, self._inverse_temperature, out=shifted)
            np.exp(shifted, out=weights)
            scaled_total += float(np.dot(weights, ones))
        return total, scaled_total, weighted


def largest(row: Floats, k: int) -> tuple[Floats, Ints]:
    """The k largest values of a row in descending order, and their indices; exact. Reads the row once.

    All of them are in the k blocks with the largest maxima: for a value in any other block, k blocks have a larger one.
    """
    whole = len(row) // BLOCK
    if whole <= k:
        return _ranked(row, np.argpartition(row, len(row) - k)[len(row) - k :])
    blocks = row[: whole * BLOCK].reshape(whole, BLOCK)
    chosen = np.argpartition(blocks.max(axis=1), whole - k)[whole - k :]
    values = np.concatenate((blocks[chosen].ravel(), row[whole * BLOCK :]))
    found = np.argpartition(values, len(values) - k)[len(values) - k :]
    inside = found < k * BLOCK
    block = chosen[np.where(inside, found // BLOCK, 0)]
    return _ranked(row, np.where(inside, block * BLOCK + found % BLOCK, found + (whole - k) * BLOCK))


def _ranked(row: Floats, indices: Ints) -> tuple[Floats, Ints]:
    indices = indices[np.argsort(-row[indices], kind="stable")]
    return row[indices], indices
