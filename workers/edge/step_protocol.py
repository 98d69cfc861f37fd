"""What the engine says to whoever runs a step, and what may come back instead of logits. Imports no engine."""

from collections.abc import Sequence
from dataclasses import dataclass


class CellsExhausted(Exception):
    """The tokens of a step do not fit into the KV cache; nothing was computed."""


@dataclass(frozen=True, slots=True)
class Feed:
    """Tokens that one sequence takes in a step, at positions `start` and up."""

    sequence: int
    start: int
    tokens: Sequence[int]
    #: Whether the logits after the last of them are wanted.
    wants_logits: bool
