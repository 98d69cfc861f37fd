"""What became of every accepted request, read from Redis, and the figures computed from it."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from broker import keys
from broker.states import FINISHED, State
from experiments.harness.system import System
from schemas import wire
from schemas.events import FINAL_KINDS, Started
from schemas.results import LostAttempts

Figures = dict[str, float | int | None]

#: Seconds from a worker's death to its jobs running elsewhere, at most.
RECOVERY_S = 20.0


@dataclass(frozen=True)
class RequestOutcome:
    """One accepted request."""

    #: Whether Redis has a record of it.
    is_known: bool
    is_finished: bool
    has_failed: bool
    #: Final events in its stream; more than one is a double commit.
    num_ends: int
    #: Whether the record and the final event name the same end.
    agrees: bool
    #: Seconds from each death of a worker that held its lease to its next attempt, or to its end.
    recoveries_s: tuple[float, ...]


def read_outcome(system: System, request_id: str, deaths: Mapping[int, float]) -> RequestOutcome:
    """The request's outcome. `deaths`: when workers died, in seconds since the epoch, by process id."""
    record = system.store.read(request_id)
    if record is None:
        return RequestOutcome(False, False, False, 0, False, ())
    events = system.events(request_id)
    ends = [event.type for _, event in events if event.type in FINAL_KINDS]
    expected_end = {"succeeded": "done"}.get(record.state, record.state)
    raw = cast("bytes | None", system.redis.hget(keys.request(request_id), "lost"))
    lost = LostAttempts() if raw is None else wire.decode(LostAttempts, raw)
    started_s = {event.attempt: at_s for at_s, event in events if isinstance(event, Started)}
    end_s = events[-1][0] if events else 0.0
    died_s = {
        attempt.attempt: deaths[pid]
        for attempt in lost.attempts
        if (pid := int(attempt.worker.rsplit("-", 1)[1])) in deaths
    }
    # A worker that died before its start event had begun by its death, which is the latest that it can have begun.
    began_s = died_s | started_s
    recoveries = [
        min((at_s for number, at_s in began_s.items() if number > attempt), default=end_s) - died
        for attempt, died in died_s.items()
    ]
    is_finished, has_failed = record.state in FINISHED, record.state == State.FAILED
    return RequestOutcome(True, is_finished, has_failed, len(ends), ends == [expected_end], tuple(recoveries))


def figures(outcomes: Sequence[RequestOutcome], stale_refused: int) -> Figures:
    """The figures of one fault, or of all."""
    recoveries = sorted(s for outcome in outcomes for s in outcome.recoveries_s)
    p99 = recoveries[min(len(recoveries) - 1, int(0.99 * len(recoveries)))] if recoveries else None
    return {
        "accepted": len(outcomes),
        "terminal": sum(outcome.is_finished for outcome in outcomes),
        "failed": sum(outcome.has_failed for outcome in outcomes),
        "lost": sum(not outcome.is_known for outcome in outcomes),
        "double_commits": sum(
            outcome.num_ends > 1 or (outcome.is_finished and not outcome.agrees) for outcome in outcomes
        ),
        "stale_refused": stale_refused,
        "recoveries": len(recoveries),
        "recovery_p50_s": round(statistics.median(recoveries), 2) if recoveries else None,
        "recovery_p99_s": None if p99 is None else round(p99, 2),
    }


def num_records(system: System) -> int:
    """Requests that Redis has a record of."""
    return sum(1 for _ in system.redis.scan_iter(keys.request("*"), count=1000))


def broken_promises(total: Figures) -> list[str]:
    """What is promised about all accepted requests and was not kept."""
    broken = []
    if not total["accepted"]:
        broken.append("nothing was accepted")
    if total["terminal"] != total["accepted"]:
        broken.append(f"{total['terminal']} of {total['accepted']} accepted requests have ended")
    if total["lost"]:
        broken.append(f"{total['lost']} requests are lost")
    if total["double_commits"]:
        broken.append(f"{total['double_commits']} requests ended twice, or their record and event name two ends")
    if (total["recovery_p99_s"] or 0.0) >= RECOVERY_S:
        broken.append(f"recovery_p99_s is {total['recovery_p99_s']}; it must be under {RECOVERY_S:g}")
    return broken
