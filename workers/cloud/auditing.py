"""Verifies drafts that were kept, for their labels alone, while the cloud has nothing else to do.

An audit begins only while at most `max_busy` requests are in flight, and is cancelled and put back when another one
arrives: no request waits for it.
"""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial

from redis.exceptions import RedisError

from broker.audits import AuditQueue
from broker.background import Loop
from config.settings import AuditSettings
from schemas.audits import Audit
from schemas.policy import Tier
from schemas.requests import AcceptanceRule
from workers.cloud.answer_order import AnswerOrder, CloudAnswer, CloudEngine
from workers.cloud.labelling import label_of
from workers.runtime.calibrations import ActiveCalibrations
from workers.runtime.failures import EngineDied, RequestCancelled

log = logging.getLogger(__name__)

#: Seconds between two looks for audits to begin.
LOOK_EVERY_S = 0.5


class Auditing:
    """See the module. `busy`: the number of requests in flight."""

    def __init__(
        self,
        engine: CloudEngine,
        queue: AuditQueue,
        calibrations: ActiveCalibrations,
        settings: AuditSettings,
        *,
        busy: Callable[[], int],
        clock: Callable[[], float],
    ) -> None:
        self._engine, self._queue, self._calibrations = engine, queue, calibrations
        self._settings, self._busy, self._clock = settings, busy, clock
        self._running: set[str] = set()
        self._lock = threading.Lock()
        #: The loop that begins audits.
        self.loop = Loop("auditor", self._step, every_s=LOOK_EVERY_S)

    def give_way(self) -> None:
        """Cancel running audits if there are more requests than audits may run beside. Does not block."""
        if self._busy() > self._settings.max_busy:
            with self._lock:
                running = list(self._running)
            for work_id in running:
                self._engine.cancel(work_id)

    def _step(self) -> None:
        if not self._calibrations.any_of(Tier.CLOUD, self._engine.model_name):
            return
        while self._has_room() and not self.loop.closing.is_set():
            taken = self._queue.take()
            if taken is None:
                return
            self._begin(*taken)

    def _has_room(self) -> bool:
        with self._lock:
            return self._busy() <= self._settings.max_busy and len(self._running) < self._settings.at_once

    def _begin(self, audit: Audit, drawn_at_s: float) -> None:
        work_id = f"audit-{audit.request_id}"
        order = AnswerOrder(
            request_id=work_id,
            messages=audit.messages,
            sampling=audit.sampling,
            draft=audit.draft,
            acceptance=AcceptanceRule(),
            use_cache=True,
            cache_namespace=audit.cache_namespace,
        )
        with self._lock:
            self._running.add(work_id)
        self._engine.submit(order).add_done_callback(partial(self._finish, audit, drawn_at_s, work_id))
        self.give_way()  # a request may have come in between

    def _finish(self, audit: Audit, drawn_at_s: float, work_id: str, done: "Future[CloudAnswer]") -> None:
        with self._lock:
            self._running.discard(work_id)
        error = done.exception()
        if isinstance(error, RequestCancelled | EngineDied):
            try:
                self._queue.add(audit, drawn_at_s)
            except RedisError as redis_error:
                log.warning("audit_lost request_id=%s error=%s", audit.request_id, redis_error)
        elif error is not None:
            log.warning("audit_failed request_id=%s error=%s", audit.request_id, error)
        else:
            self._label(audit, done.result())

    def _label(self, audit: Audit, answer: CloudAnswer) -> None:
        report = audit.draft.confidence
        active = self._calibrations.of_version(None if report is None else report.calibration)
        if active is None:  # another calibration has taken its place
            return
        label = label_of(
            audit.draft,
            answer,
            active.calibration.audited_by,
            kept=True,
            drawn=audit.drawn,
            now_s=self._clock(),
        )
        if label is not None:
            log.info("draft_audited request_id=%s worse=%s worth=%.2f", audit.request_id, label.worse, label.worth)
            self._calibrations.label(active.calibration.scope.digest, label)
