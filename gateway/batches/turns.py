"""Which of the batches that wait is run next: owners take turns, whatever the number of their batches. Pure."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Waiting:
    """A batch that this process does not run."""

    batch_id: str
    owner: str
    #: When it was made, in seconds since the epoch.
    created_at: int
    #: When this process last ran it, by any clock that only grows; below 0 where it never did.
    served_at: float = -1.0


def in_turn(waiting: Iterable[Waiting], running: Mapping[str, int]) -> list[Waiting]:
    """All of them, in the order in which they should be run, beside so many of each owner's that run already.

    The next is always one of the owner with the fewest before it; among those, and among an owner's own, the one that
    was not run for the longest time, and the oldest first where none was run.
    """
    before = Counter(running)
    lines: dict[str, list[Waiting]] = {}
    for one in sorted(waiting, key=_age, reverse=True):
        lines.setdefault(one.owner, []).append(one)
    order = []
    while lines:
        owner = min(lines, key=lambda name: (before[name], _age(lines[name][-1])))
        order.append(lines[owner].pop())
        before[owner] += 1
        if not lines[owner]:
            del lines[owner]
    return order


def _age(one: Waiting) -> tuple[float, int, str]:
    return one.served_at, one.created_at, one.batch_id
