"""Calibrations in Redis: their versions, which are active, and what has been learnt about them in service."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from redis import Redis

from broker import keys, scripts
from schemas import wire
from schemas.calibration import Calibration, HistoryEntry, Label, Scope, Tally
from schemas.drift import DriftState
from schemas.wire import UndecodableMessage

log = logging.getLogger(__name__)

#: Entries of the history. A calibration that is in none of them, and not active, is deleted.
HISTORY_ENTRIES = 200
#: About how many labels and tallies of a scope are kept, and for how many seconds after the last.
MAX_LABELS, LABELS_TTL_S = 10_000, 90 * 86_400
#: Seconds for which a worker watches the calibrations unless it renews that.
KEEPER_TTL_S = 10
#: The most entries that are read at once.
READ_AT_ONCE = 2_000


class UnknownCalibration(LookupError):
    """There is no such version, or none before the active one."""


@dataclass(frozen=True)
class Observations:
    """Labels and counts since a position in a scope's stream."""

    labels: Sequence[Label]
    tally: Tally
    #: The position after them.
    position: str
    #: Whether there are more.
    more: bool


class CalibrationStore:
    """Reads and changes calibrations. Safe on any thread. A method takes one round trip unless it says otherwise."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    def activate(self, calibration: Calibration, *, keep_labels: bool = False) -> int:
        """Store a calibration under a new version and make it its scope's active one. Returns the version.

        What was learnt in service about an earlier calibration of the scope is forgotten, with `keep_labels` all but
        its labels: they are of use only to a calibration with the same scores. Four round trips.
        """
        version = int(self._redis.incr(keys.calibration_version()))
        numbered = calibration.model_copy(update={"version": version, "created_at_s": self._now_s()})
        self._make_active(numbered, numbered.reason, keep_labels=keep_labels)
        self._delete_superseded()
        return version

    def rollback(self, scope: Scope, version: int | None = None) -> Calibration:
        """Make another calibration the scope's active one: the named, or that of the next lower version.

        Raises `UnknownCalibration`. Some round trips.
        """
        if version is None:
            active = self._active_versions().get(scope.digest, 0)
            version = max(
                (
                    entry.version
                    for entry in self.history(HISTORY_ENTRIES)
                    if entry.scope == scope and entry.version < active
                ),
                default=None,
            )
            if version is None:
                raise UnknownCalibration("there is no calibration before the active one")
        calibration = self.read(version)
        if calibration is None or calibration.scope != scope:
            raise UnknownCalibration(f"there is no calibration {version} of this pair of models")
        self._make_active(calibration, f"rolled back to {version}", keep_labels=False)
        return calibration

    def active(self) -> list[Calibration]:
        """All active calibrations, by version. Two round trips."""
        versions = sorted(self._active_versions().values())
        if not versions:
            return []
        raw = cast("list[bytes | None]", self._redis.mget([keys.calibration(str(version)) for version in versions]))
        return [calibration for each in raw if each is not None and (calibration := _readable(each)) is not None]

    def active_versions(self) -> Mapping[str, int]:
        """The version of each scope's active calibration, by the scope's digest."""
        return self._active_versions()

    def read(self, version: int) -> Calibration | None:
        """A calibration, or None if there is none of this version. Raises `UndecodableMessage`."""
        raw = cast("bytes | None", self._redis.get(keys.calibration(str(version))))
        return None if raw is None else wire.decode(Calibration, raw)

    def history(self, most: int = 50) -> list[HistoryEntry]:
        """Changes of the active calibrations, the latest first. Raises `UndecodableMessage`."""
        raw = cast("list[bytes]", self._redis.lrange(keys.calibration_history(), 0, most - 1))
        return [wire.decode(HistoryEntry, each) for each in raw]

    # What happens in service

    def observe(self, entries: Iterable[tuple[str, Label | Tally]]) -> None:
        """Append labels and tallies, each with its scope's digest."""
        with self._redis.pipeline(transaction=False) as pipeline:
            for digest, entry in entries:
                name = "label" if isinstance(entry, Label) else "tally"
                key = keys.labels(digest)
                pipeline.xadd(key, {name: wire.encode(entry)}, maxlen=MAX_LABELS, approximate=True)
                pipeline.expire(key, LABELS_TTL_S)
            if len(pipeline):
                pipeline.execute()

    def observations(self, scope: Scope, position: str, version: int) -> Observations:
        """What was appended after a position about drafts that a version decided. `0-0` is before everything."""
        raw = cast(
            "list[tuple[bytes, dict[bytes, bytes]]]",
            self._redis.xrange(keys.labels(scope.digest), min=f"({position}", count=READ_AT_ONCE),
        )
        labels: list[Label] = []
        tallies: list[Tally] = []
        for entry_id, fields in raw:
            try:
                if b"label" in fields:
                    labels.append(wire.decode(Label, fields[b"label"]))
                elif b"tally" in fields:
                    tallies.append(wire.decode(Tally, fields[b"tally"]))
            except UndecodableMessage as error:
                log.warning("label_unreadable entry=%s error=%s", entry_id.decode(), error)
        last = raw[-1][0].decode() if raw else position
        own = [label for label in labels if label.version == version]
        tally = _sum(version, [each for each in tallies if each.version == version])
        return Observations(own, tally, last, more=len(raw) == READ_AT_ONCE)

    def labels_of(self, scope: Scope, version: int) -> list[Label]:
        """All labels of drafts that a version decided and that are still kept, oldest first. Some round trips."""
        labels: list[Label] = []
        since, more = "0-0", True
        while more:
            found = self.observations(scope, since, version)
            labels += found.labels
            since, more = found.position, found.more
        return labels

    def drift(self, scope: Scope) -> DriftState | None:
        """What watching the scope has found so far; None before the first time."""
        return self.drift_and_position(scope)[0]

    def drift_and_position(self, scope: Scope) -> tuple[DriftState | None, str]:
        """The monitor's state, and the position of the last entry that is in it."""
        state, position = cast("list[bytes | None]", self._redis.hmget(keys.drift(scope.digest), ["state", "position"]))
        reached = (position or b"0-0").decode()
        try:
            return None if state is None else wire.decode(DriftState, state), reached
        except UndecodableMessage as error:  # of another version: it begins anew
            log.warning("drift_unreadable scope=%s error=%s", scope.digest, error)
            return None, reached

    def save_drift(self, scope: Scope, state: DriftState, position: str) -> None:
        """Store the monitor's state."""
        with self._redis.pipeline() as pipeline:
            pipeline.hset(keys.drift(scope.digest), mapping={"state": wire.encode(state), "position": position})
            pipeline.expire(keys.drift(scope.digest), LABELS_TTL_S)
            pipeline.execute()

    def count(self, counter: str) -> None:
        """Increment one of the system's counters."""
        with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.hincrby(keys.counters(), counter, 1)
            pipeline.expire(keys.counters(), scripts.COUNTERS_TTL_S)
            pipeline.execute()

    def keep_watch(self, worker: str) -> bool:
        """Whether this worker is the one that watches the calibrations, for `KEEPER_TTL_S`. One or two round trips."""
        name = keys.drift_keeper()
        if self._redis.set(name, worker, nx=True, ex=KEEPER_TTL_S):
            return True
        if self._redis.get(name) != worker.encode():
            return False
        return bool(self._redis.expire(name, KEEPER_TTL_S))

    def _active_versions(self) -> dict[str, int]:
        raw = cast("dict[bytes, bytes]", self._redis.hgetall(keys.calibrations()))
        return {digest.decode(): int(version) for digest, version in raw.items()}

    def _make_active(self, calibration: Calibration, reason: str, *, keep_labels: bool) -> None:
        scope = calibration.scope
        entry = HistoryEntry(
            version=calibration.version,
            scope=scope,
            threshold=calibration.threshold,
            reason=reason,
            labels=len(calibration.labels),
            at_s=self._now_s(),
        )
        latest = cast("list[tuple[bytes, Any]]", self._redis.xrevrange(keys.labels(scope.digest), count=1))
        with self._redis.pipeline() as pipeline:
            pipeline.set(keys.calibration(str(calibration.version)), wire.encode(calibration))
            pipeline.hset(keys.calibrations(), scope.digest, calibration.version)
            pipeline.lpush(keys.calibration_history(), wire.encode(entry))
            pipeline.delete(keys.drift(scope.digest))
            if not keep_labels:
                pipeline.delete(keys.labels(scope.digest))
            elif latest:  # what is there already was about the calibration before
                pipeline.hset(keys.drift(scope.digest), "position", latest[0][0])
                pipeline.expire(keys.drift(scope.digest), LABELS_TTL_S)
            pipeline.execute()
        log.info(
            "calibration_activated version=%d edge=%r cloud=%r threshold=%s reason=%r",
            calibration.version,
            scope.edge_model,
            scope.cloud_model,
            calibration.threshold,
            reason,
        )

    def _delete_superseded(self) -> None:
        """Delete the calibrations that the history has dropped."""
        dropped = cast("list[bytes]", self._redis.lrange(keys.calibration_history(), HISTORY_ENTRIES, -1))
        if not dropped:
            return
        kept = {entry.version for entry in self.history(HISTORY_ENTRIES)} | set(self._active_versions().values())
        old = {wire.decode(HistoryEntry, each).version for each in dropped} - kept
        with self._redis.pipeline() as pipeline:
            pipeline.ltrim(keys.calibration_history(), 0, HISTORY_ENTRIES - 1)
            for version in old:
                pipeline.delete(keys.calibration(str(version)))
            pipeline.execute()

    def _now_s(self) -> float:
        seconds, microseconds = cast("Any", self._redis.time())
        return float(seconds + microseconds / 1e6)


def _readable(raw: bytes) -> Calibration | None:
    try:
        return wire.decode(Calibration, raw)
    except UndecodableMessage as error:
        log.warning("calibration_unreadable error=%s", error)
        return None


def _sum(version: int, tallies: Sequence[Tally]) -> Tally:
    return Tally(
        version=version,
        kept=sum(each.kept for each in tallies),
        escalated=sum(each.escalated for each in tallies),
        stopped_early=sum(each.stopped_early for each in tallies),
    )
