"""`threshold` mode: which of a draft's tokens stand, by how much they fell short, and where stop strings cut.

Owns the rule of the design: a token stands if the model gives it at least a share of its favourite's probability, and
all before it stand. Pure; the engine brings the log-probabilities.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from schemas.requests import Sampling


@dataclass(frozen=True)
class AcceptedPrefix:
    """The part of a draft that stands."""

    num_tokens: int
    #: How far each standing token's log-probability is below the favourite's; 0 for a favourite.
    shortfalls: tuple[float, ...]

    @property
    def mean_shortfall(self) -> float:
        """Mean over the standing tokens; 0 where none stands."""
        return sum(self.shortfalls) / len(self.shortfalls) if self.shortfalls else 0.0

    @property
    def max_shortfall(self) -> float:
        """The largest of them; 0 where none stands."""
        return max(self.shortfalls, default=0.0)


def standing_prefix(logprobs: Sequence[float], favourites: Sequence[float], threshold: float) -> AcceptedPrefix:
    """How many of a draft's first tokens stand, given the model's log-probability of each and of its favourite.

    A threshold of 1 lets favourites alone stand, 0 everything.
    """
    most = -math.log(threshold) if threshold > 0.0 else math.inf
    shortfalls = []
    for chosen, favourite in zip(logprobs, favourites, strict=True):
        shortfall = max(0.0, favourite - chosen)
        if shortfall > most:
            break
        shortfalls.append(shortfall)
    return AcceptedPrefix(len(shortfalls), tuple(shortfalls))


def can_be_scored(sampling: Sampling) -> bool:
    """Whether letting tokens stand unsampled keeps the request's options.

    Penalties, biases and grammars act while the model writes: such requests are verified exactly.
    """
    plain = Sampling()
    names = ("repetition_penalty", "frequency_penalty", "presence_penalty", "logit_bias", "grammar")
    return sampling.json_schema is None and all(getattr(sampling, name) == getattr(plain, name) for name in names)


def cut_at_stop(lengths: Sequence[int], text: str, stops: Sequence[str]) -> tuple[int, int] | None:
    """Tokens and characters that are kept where a stop string ends the text; None where there is none.

    The stop string that is complete first counts, as if the text had been written token by token: the token that
    completes it is kept, the characters from its beginning on are not. `lengths` are the characters of each token.
    """
    found = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    if not found:
        return None
    complete, begin = min(found)
    written = 0
    for index, length in enumerate(lengths):
        written += length
        if written >= complete:
            return index + 1, begin
    return len(lengths), begin


def begun_stop(text: str, stops: Sequence[str]) -> int:
    """Characters at the end of the text that may be the beginning of a stop string."""
    longest = max((len(stop) - 1 for stop in stops), default=0)
    tails = range(min(longest, len(text)), 0, -1)
    begun = (size for size in tails if any(len(stop) > size and stop.startswith(text[-size:]) for stop in stops))
    return next(begun, 0)
