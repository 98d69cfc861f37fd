"""The order in which waiting batches run: owners take turns, however many batches each has. Pure."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Waiting:
    """A batch that this process does not run."""

    batch_id: str
    owner: str
    #: Seconds since the epoch.
    created_at: int
    #: When this process last ran it, by `time.monotonic`; below 0 if never.
    served_at: float = -1.0


def in_turn(waiting: Iterable[Waiting], running: Mapping[str, int]) -> list[Waiting]:
    """All of them, in the order in which they should run. `running` counts the runs of each owner.

    The next batch is one of the owner with the fewest runs and batches before it. Among equals it is the one that has
    not run for the longest time, or the oldest where none has run.
    """
    num_before = Counter(running)
    queues: dict[str, list[Waiting]] = {}
    for batch in sorted(waiting, key=_age, reverse=True):
        queues.setdefault(batch.owner, []).append(batch)
    order = []
    while queues:
        owner = min(queues, key=lambda name: (num_before[name], _age(queues[name][-1])))
        order.append(queues[owner].pop())
        num_before[owner] += 1
        if not queues[owner]:
            del queues[owner]
    return order


def _age(batch: Waiting) -> tuple[float, int, str]:
    return batch.served_at, batch.created_at, batch.batch_id
