"""What became of every accepted request, read from Redis, and the figures made of it."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from redis import Redis

from broker import keys
from broker.event_streams import EventHub
from broker.leases import Lifetimes
from broker.request_store import RequestStore
from broker.states import FINISHED, State
from schemas import wire
from schemas.events import FINAL_KINDS, Started
from schemas.results import LostAttempts

Figures = dict[str, float | int | None]

#: Seconds from a worker's death to its jobs running elsewhere, at most.
RECOVERY_S = 20.0
LIFETIMES = Lifetimes(result_ttl_s=3600, lease_s=10.0, max_attempts=3)


@dataclass(frozen=True)
class Story:
    """One accepted request."""

    is_known: bool
    is_finished: bool
    has_failed: bool
    #: Final events of its stream; more than one is a double commit.
    num_ends: int
    #: Whether the record and the final event tell the same.
    agrees: bool
    #: Seconds from each death of a worker that had it in hand to its next attempt, or its end.
    recoveries_s: tuple[float, ...]


def read_story(redis: Redis, request_id: str, deaths: Mapping[int, float]) -> Story:
    """The request's story; `deaths` are the times at which workers died, by process id."""
    record = RequestStore(redis, LIFETIMES).read(request_id)
    events = EventHub(redis).read(request_id)
    if record is None:
        return Story(False, False, False, 0, False, ())
    ends = [streamed.event.type for streamed in events if streamed.event.type in FINAL_KINDS]
    says = {"succeeded": "done"}.get(record.state, record.state)
    raw = cast("bytes | None", redis.hget(keys.request(request_id), "lost"))
    lost = LostAttempts() if raw is None else wire.decode(LostAttempts, raw)
    at_s = {
        streamed.event.attempt: int(streamed.position.split("-")[0]) / 1000
        for streamed in events
        if isinstance(streamed.event, Started)
    }
    end_s = int(events[-1].position.split("-")[0]) / 1000 if events else 0.0
    died_s = {one.attempt: deaths.get(int(one.worker.rsplit("-", 1)[1])) for one in lost.attempts}
    # Who dies at once has not told of its start: it had begun by its death, which is as late as it can have been.
    began_s = {number: died for number, died in died_s.items() if died is not None} | at_s
    recoveries = [
        min((at for number, at in began_s.items() if number > attempt), default=end_s) - died
        for attempt, died in died_s.items()
        if died is not None
    ]
    is_finished, has_failed = record.state in FINISHED, record.state == State.FAILED
    return Story(True, is_finished, has_failed, len(ends), ends == [says], tuple(recoveries))


def has_ended(redis: Redis, request_id: str) -> bool:
    """Whether the request is finished."""
    return RequestStore(redis, LIFETIMES).state(request_id) in FINISHED


def first_start_after(redis: Redis, request_id: str, died_s: float) -> float | None:
    """Seconds from a death to the request's next start, for one that nobody had in hand yet."""
    for streamed in EventHub(redis).read(request_id):
        at_s = int(streamed.position.split("-")[0]) / 1000
        if isinstance(streamed.event, Started) and at_s >= died_s:
            return at_s - died_s
    return None


def figures(stories: Sequence[Story], stale_refused: int, more_recoveries_s: Sequence[float] = ()) -> Figures:
    """The figures of one fault, or of all."""
    recoveries = sorted([*(s for story in stories for s in story.recoveries_s), *more_recoveries_s])
    return {
        "accepted": len(stories),
        "terminal": sum(story.is_finished for story in stories),
        "failed": sum(story.has_failed for story in stories),
        "lost": sum(not story.is_known for story in stories),
        "double_commits": sum(story.num_ends > 1 or (story.is_finished and not story.agrees) for story in stories),
        "stale_refused": stale_refused,
        "recoveries": len(recoveries),
        "recovery_p50_s": round(statistics.median(recoveries), 2) if recoveries else None,
        "recovery_p99_s": round(recoveries[min(len(recoveries) - 1, int(0.99 * len(recoveries)))], 2)
        if recoveries
        else None,
    }


def counted(redis: Redis, name: str) -> int:
    """A counter as it stands."""
    return int(cast("bytes | None", redis.hget(keys.counters(), name)) or 0)


def num_records(redis: Redis) -> int:
    """Requests that Redis has a record of."""
    return sum(1 for _ in redis.scan_iter(keys.request("*"), count=1000))


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
        broken.append(f"{total['double_commits']} requests ended twice, or told two ends")
    if (total["recovery_p99_s"] or 0.0) >= RECOVERY_S:
        broken.append(f"recovery_p99_s is {total['recovery_p99_s']}; it must be under {RECOVERY_S:g}")
    return broken
