"""Whether an engine hangs: it has requests and moves none of them. Pure."""

from collections.abc import Mapping

#: Seconds that one look counts for at most: a process that was stopped and goes on has not watched its engine hang.
LONGEST_LOOK_S = 2.0


class StallDetector:
    """Looks at the progress of all requests in hand from time to time."""

    def __init__(self, stall_s: float) -> None:
        self._stall_s = stall_s
        self._stalled_s = 0.0
        self._looked_at: float | None = None
        self._progress: dict[str, int] = {}

    def is_stalled(self, progress: Mapping[str, int], now: float) -> bool:
        """Whether for `stall_s` none moved. `progress` is a growing number for each; `now` is in seconds.

        One that has left has moved; one that is new has not, or a hung engine that is given more would never be found.
        """
        moved = any(progress.get(name, -1) != before for name, before in self._progress.items())
        if moved or not self._progress or self._looked_at is None:
            self._stalled_s = 0.0
        else:
            self._stalled_s += min(now - self._looked_at, LONGEST_LOOK_S)
        self._looked_at = now
        self._progress = dict(progress)
        return self._stalled_s >= self._stall_s
