"""`threshold` mode: how many of a draft's tokens are accepted, by how much they fell short, where stop strings cut.

Owns the rule: a token is accepted if the model gives it at least a share (the threshold) of its likeliest token's
probability, and all tokens before it are accepted. Pure; the engine brings the log-probabilities.
"""

import math
from collections.abc import Sequence
from itertools import takewhile

from schemas.requests import Sampling


def accepted_shortfalls(logprobs: Sequence[float], likeliest: Sequence[float], threshold: float) -> list[float]:
    """For each of a draft's first tokens that are accepted, how far its log-probability is below the likeliest's there.

    A threshold of 1 accepts the likeliest tokens only, 0 everything.
    """
    max_shortfall = -math.log(threshold) if threshold > 0.0 else math.inf
    shortfalls = (max(0.0, best - chosen) for chosen, best in zip(logprobs, likeliest, strict=True))
    return list(takewhile(lambda shortfall: shortfall <= max_shortfall, shortfalls))


def can_be_scored(sampling: Sampling) -> bool:
    """Whether tokens may be accepted unsampled without breaking the request's options.

    Penalties, biases and grammars act while the model writes: such requests are verified exactly.
    """
    plain = Sampling()
    names = ("repetition_penalty", "frequency_penalty", "presence_penalty", "logit_bias", "grammar")
    return sampling.json_schema is None and all(getattr(sampling, name) == getattr(plain, name) for name in names)


def cut_at_stop(lengths: Sequence[int], text: str, stops: Sequence[str]) -> tuple[int, int] | None:
    """How many tokens and characters are kept where a stop string ends the text; None where there is none.

    The stop string that is complete first counts, as if the text had been written token by token: the token that
    completes it is kept, the characters from its beginning on are not. `lengths` are the characters of each token.
    """
    matches = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    if not matches:
        return None
    end, begin = min(matches)
    written = 0
    for index, length in enumerate(lengths):
        written += length
        if written >= end:
            return index + 1, begin
    return len(lengths), begin


def partial_stop(text: str, stops: Sequence[str]) -> int:
    """Characters at the end of the text that may be the beginning of a stop string."""
    longest = max((len(stop) - 1 for stop in stops), default=0)
    tails = range(min(longest, len(text)), 0, -1)
    begun = (size for size in tails if any(len(stop) > size and stop.startswith(text[-size:]) for stop in stops))
    return next(begun, 0)
