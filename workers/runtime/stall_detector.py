"""Whether an engine hangs: it has requests, and none of them makes progress. Pure."""

from collections.abc import Mapping

#: The most seconds counted between two checks: a process that was suspended has not watched its engine hang.
MAX_INTERVAL_S = 2.0


class StallDetector:
    """Checks the progress of all requests in flight from time to time."""

    def __init__(self, stall_s: float) -> None:
        self._stall_s = stall_s
        self._stalled_s = 0.0
        self._checked_at: float | None = None
        self._progress: dict[str, int] = {}

    def is_stalled(self, progress: Mapping[str, int], now: float) -> bool:
        """Whether none made progress for `stall_s`. `progress` has a growing number for each; `now` is in seconds.

        A request that has ended counts as progress. A new one does not: a hung engine may still get new requests.
        """
        moved = any(progress.get(name, -1) != before for name, before in self._progress.items())
        if moved or not self._progress or self._checked_at is None:
            self._stalled_s = 0.0
        else:
            self._stalled_s += min(now - self._checked_at, MAX_INTERVAL_S)
        self._checked_at = now
        self._progress = dict(progress)
        return self._stalled_s >= self._stall_s
