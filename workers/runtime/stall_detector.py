"""Detects an engine that hangs: it has requests, and none of them makes progress. Pure."""

from collections.abc import Mapping

#: The most seconds that count between two checks, so that time in which the process was suspended does not count.
MAX_INTERVAL_S = 2.0


class StallDetector:
    """Compares the progress of all requests in flight between checks."""

    def __init__(self, stall_s: float) -> None:
        self._stall_s = stall_s
        self._stalled_s = 0.0
        self._checked_at: float | None = None
        self._progress: dict[str, int] = {}

    def is_stalled(self, progress: Mapping[str, int], now: float) -> bool:
        """Whether no request made progress for `stall_s`. `progress`: a growing number for each. `now`: in seconds.

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
