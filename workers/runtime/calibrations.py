"""The active calibrations as one worker knows them, and what the worker learns about them in service.

One loop reads which calibrations are active, appends the worker's labels and counts, and, in the one worker that is
elected for it, watches whether the calibrations keep their promises (`quality.drift`).
"""

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from redis.exceptions import RedisError

from broker.background import Loop
from broker.calibrations import CalibrationStore
from config.settings import QualitySettings
from quality.drift import AuditPlan, refit, update
from schemas.calibration import Calibration, Label, Tally
from schemas.drift import DriftKind, DriftState
from schemas.policy import Tier
from schemas.workers import WorkerReport

log = logging.getLogger(__name__)

#: Seconds between two steps of the loop: how soon a worker takes up a new calibration, or a raised threshold.
REFRESH_S = 1.0
#: The same where there is no calibration.
IDLE_REFRESH_S = 2.0


@dataclass(frozen=True)
class Active:
    """An active calibration, and what watching it has found."""

    calibration: Calibration
    drift: DriftState | None


class ActiveCalibrations:
    """See the module. Methods may be called from any thread, and do not block."""

    def __init__(
        self,
        store: CalibrationStore,
        settings: QualitySettings,
        worker: str,
        live: Callable[[], Iterable[WorkerReport]],
        clock: Callable[[], float],
    ) -> None:
        self._store, self._worker, self._live, self._clock = store, worker, live, clock
        self._plan = AuditPlan(share=settings.audits.share)
        #: By version; None before the first look.
        self._active: Mapping[int, Active] | None = None
        self._cloud_models: frozenset[str] = frozenset()
        self._lock = threading.Lock()
        self._labels: list[tuple[str, Label]] = []
        self._tallies: dict[tuple[str, int], Tally] = {}
        #: The loop that keeps all this up to date.
        self.loop = Loop("calibrations", self._step, every_s=REFRESH_S)

    def find(self, edge_model: str, strategy: str, traffic_class: str | None) -> Active | None:
        """The calibration for a request, if there is one for each cloud model that may answer it.

        With several cloud models, whichever may get the request, it is the strictest. A calibration of the request's
        traffic class comes before one of no class.
        """
        with self._lock:
            active, cloud_models = self._active or {}, self._cloud_models
        for wanted in (traffic_class, None) if traffic_class is not None else (None,):
            found = {
                each.calibration.scope.cloud_model: each
                for each in active.values()
                if (scope := each.calibration.scope).edge_model == edge_model
                and scope.strategy == strategy
                and scope.traffic_class == wanted
            }
            # While no cloud worker is alive, whichever comes back may answer.
            if found and cloud_models <= found.keys():
                return max((found[model] for model in cloud_models or found), key=_strictness)
        return None

    def of_version(self, version: int | None) -> Active | None:
        """The active calibration of this version, if it still is active."""
        with self._lock:
            return None if version is None or self._active is None else self._active.get(version)

    def any_of(self, tier: Tier, model: str) -> Sequence[Active]:
        """The active calibrations that are about this model of a tier."""
        with self._lock:
            return [
                each
                for each in (self._active or {}).values()
                if model
                == (each.calibration.scope.edge_model if tier is Tier.EDGE else each.calibration.scope.cloud_model)
            ]

    def count(self, digest: str, tally: Tally) -> None:
        """Count a draft that a scope's calibration decided."""
        with self._lock:
            before = self._tallies.get((digest, tally.version), Tally())
            self._tallies[digest, tally.version] = Tally(
                version=tally.version,
                kept=before.kept + tally.kept,
                escalated=before.escalated + tally.escalated,
                stopped_early=before.stopped_early + tally.stopped_early,
            )

    def label(self, digest: str, label: Label) -> None:
        """Note a label, which is stored within a second or two."""
        with self._lock:
            self._labels.append((digest, label))

    def close(self) -> None:
        """Stop, and store what was noted."""
        self.loop.close()
        try:
            self._flush()
        except RedisError as error:
            log.warning("labels_lost error=%s", error)

    def _step(self) -> float:
        self._flush()
        self._read()
        if not self._active:
            return IDLE_REFRESH_S
        if self._store.keep_watch(self._worker):
            for active in self._active.values():
                self._watch(active.calibration)
        return REFRESH_S

    def _flush(self) -> None:
        with self._lock:
            labels, self._labels = self._labels, []
            tallies, self._tallies = self._tallies, {}
        # Tallies first: a label must not arrive before its draft was counted.
        self._store.observe([*((digest, tally) for (digest, _), tally in tallies.items()), *labels])

    def _read(self) -> None:
        versions = self._store.active_versions()
        before = None if self._active is None else set(self._active)
        known = {each.calibration.version: each.calibration for each in (self._active or {}).values()}
        if set(versions.values()) - known.keys():
            known = {calibration.version: calibration for calibration in self._store.active()}
        active = {
            version: Active(known[version], self._store.drift(known[version].scope))
            for version in versions.values()
            if version in known
        }
        cloud_models = {report.model for report in self._live() if report.tier is Tier.CLOUD} if active else set()
        with self._lock:
            self._active = active
            self._cloud_models = frozenset(cloud_models)
        if before != set(active):
            self._say(active)

    def _say(self, active: Mapping[int, Active]) -> None:
        if not active:
            log.warning("confidence_uncalibrated advice=%r", "`firstdraft calibrate` measures what a threshold risks")
        for each in active.values():
            scope = each.calibration.scope
            log.info(
                "calibration_in_use version=%d edge=%r cloud=%r class=%s threshold=%s",
                each.calibration.version,
                scope.edge_model,
                scope.cloud_model,
                scope.traffic_class,
                each.calibration.threshold,
            )

    def _watch(self, calibration: Calibration) -> None:
        """Take note of what was observed, and act on it."""
        scope = calibration.scope
        state, position = self._store.drift_and_position(scope)
        more = True
        while more:
            found = self._store.observations(scope, position, calibration.version)
            more = found.more
            if found.position == position:
                return
            position = found.position
            now_s = self._clock()
            state, events = update(state, calibration, self._plan, tally=found.tally, labels=found.labels, now_s=now_s)
            self._store.save_drift(scope, state, position)
            for event in events:
                log.warning("calibration_%s version=%d reason=%r", event.kind, calibration.version, event.message)
                self._store.count(f"calibration_{event.kind}")
            if any(event.kind is DriftKind.REFIT_DUE for event in events) and self._refit(calibration, state):
                return

    def _refit(self, calibration: Calibration, state: DriftState) -> bool:
        """Replace a calibration whose promise was broken, if the labels since then allow it."""
        since_s = state.broken_at_s or 0.0
        labels = self._store.labels_of(calibration.scope, calibration.version)
        labels = [label for label in labels if label.at_s >= since_s]
        after = refit(calibration, labels, state.looks)
        if after is None:
            log.warning("calibration_kept_nothing version=%d labels=%d", calibration.version, len(labels))
            return False
        self._store.activate(after, keep_labels=True)
        return True


def _strictness(active: Active) -> float:
    thresholds = [active.calibration.threshold, active.drift.threshold if active.drift else 0.0]
    return max(2.0 if threshold is None else threshold for threshold in thresholds)
