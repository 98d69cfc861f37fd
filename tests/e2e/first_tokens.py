"""How long a prompt takes until its first token, asked as an attacker would who guesses at another owner's prompts."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

#: Long prompts that share no beginning, so that each is fresh to everybody.
SECRETS = ("tides", "ovens", "rivers", "clocks", "bees")
#: The first token of a cached prompt takes less than half of a fresh one's time (measured: 0.08 of it at the
#: edge, 0.27 on vLLM, on a machine with five times as much to do as it has cores), and a stranger's takes all of it.
ALIKE = 0.5


@dataclass(frozen=True)
class Guesses:
    """Of each topic's prompt: seconds to the first token and cached tokens, for each of three who ask in turn."""

    #: The owner's first, a stranger's same prompt, and the owner's again.
    fresh: list[tuple[float, int]]
    stranger: list[tuple[float, int]]
    own: list[tuple[float, int]]

    def seconds(self, of: str) -> float:
        """The median."""
        return statistics.median(took_s for took_s, _ in getattr(self, of))

    def cached(self, of: str) -> list[int]:
        """Of each prompt, in turn."""
        return [num for _, num in getattr(self, of)]


def guessed(ask: Callable[[str, str], int]) -> Guesses:
    """`ask` has one token written to a prompt for a namespace, and answers how much of the prompt was cached."""
    found = Guesses([], [], [])
    for topic in SECRETS:
        prompt = f"{topic} are what this secret is about: " + f"nobody may hear of the {topic} of {topic}. " * 30
        for rows, namespace in (
            (found.fresh, "owner:alice"),
            (found.stranger, f"owner:{topic}"),
            (found.own, "owner:alice"),
        ):
            began = time.perf_counter()
            num_cached = ask(prompt, namespace)
            rows.append((time.perf_counter() - began, num_cached))
    return found
