"""Builds a worker process around an engine and runs it: the part that both tiers' composition roots share."""

import logging
import os
import secrets
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

from redis.exceptions import RedisError

from broker.audits import AuditQueue
from broker.background import Loop
from broker.calibrations import CalibrationStore
from broker.clock import ServerClock
from broker.connection import connect_configured, connect_index
from broker.leases import Lifetimes
from broker.prefix_index import PrefixIndex, member_name
from broker.presence import LIFE_S, Presence
from broker.reaper import Reaper
from broker.request_store import RequestStore
from broker.router import Router
from broker.rq_transport import FUNCTION_NAMES
from broker.suitability import check_server
from config.settings import Settings
from schemas.policy import Tier
from schemas.requests import AcceptedRequest
from schemas.workers import WorkerReport
from workers.runtime.calibrations import ActiveCalibrations
from workers.runtime.engine import CachedPrefixes, Engine
from workers.runtime.in_flight import InFlight
from workers.runtime.job import JobRunner
from workers.runtime.prefix_publisher import PrefixPublisher
from workers.runtime.rq_worker import Hooks, RQWorker

log = logging.getLogger(__name__)

#: Seconds that handing requests back may take after the grace time.
HAND_BACK_S = 1.5
#: The longest time, in seconds, between two reports. A report may fail once before the worker counts as dead.
RENEW_S = LIFE_S / 2.1


class Reporter:
    """Publishes this worker's reports, which keep it alive in Redis."""

    def __init__(self, presence: Presence, report: Callable[[], WorkerReport], lease_s: float) -> None:
        self._presence = presence
        self._report = report
        #: The loop that renews the report.
        self.loop = Loop("reporter", self._renew, every_s=min(RENEW_S, lease_s / 3))

    def start(self) -> None:
        """Publish the first report and start the loop."""
        self._renew()
        self.loop.start()

    def close(self) -> None:
        """Withdraw the report, and move the requests in the worker's line to the shared one."""
        self.loop.close()
        try:
            self._presence.withdraw(self._report())
        except RedisError as error:
            log.warning("redis_away error=%s", error)

    def _renew(self) -> None:
        for worker, num_requests in self._presence.renew(self._report()).items():
            log.warning("worker_found_dead worker=%s requests_moved=%d", worker, num_requests)


class Assembly:
    """Builds the objects of one worker process. Then `run` runs the tier's jobs.

    `stall_s` overrides the setting.
    """

    def __init__(
        self, settings: Settings, tier: Tier, engine: Engine[Any, Any], *, stall_s: float | None = None
    ) -> None:
        requests = settings.requests
        lifetimes = Lifetimes.configured(requests)
        self.tier = tier
        self.engine = engine
        self.worker_id = f"{tier}-{socket.gethostname()}-{os.getpid()}"
        self._capacity = capacity = (settings.edge if tier is Tier.EDGE else settings.cloud).max_in_flight
        self.redis = connect_configured(settings.redis, capacity)
        check_server(self.redis, settings)
        self.lease_s = requests.lease_s
        self.store = RequestStore(self.redis, lifetimes)
        self.reaper = Reaper(self.store)
        self.in_flight = InFlight(
            self.store,
            engine.cancel,
            requests.lease_s,
            progress=engine.progress,
            stall_s=requests.stall_s if stall_s is None else stall_s,
            hung=_end_at_once,
        )
        self._grace_s = requests.stop_grace_s
        self._epoch = secrets.token_hex(8)
        #: Seconds since the epoch, by Redis's clock.
        self.clock = ServerClock(self.redis)
        self._started_at_s = self.clock()
        self._presence = Presence(self.redis, requests.lease_s)
        self.audits = AuditQueue(self.redis, settings.quality.audits.keep_s)
        self.calibrations = ActiveCalibrations(
            CalibrationStore(self.redis),
            settings.quality,
            member_name(self.worker_id, self._epoch),
            self._presence.live,
            self.clock,
        )
        self.router = Router.configured(settings, self.store, self._presence, capacity)
        holder = engine.cached_prefixes if settings.prefix_index.enabled else None
        self._publisher = self._prefix_publisher(settings, holder) if holder else None

    def _prefix_publisher(self, settings: Settings, holder: CachedPrefixes) -> PrefixPublisher:
        index = PrefixIndex(connect_index(settings.redis), settings.prefix_index.entry_ttl_s)
        member = member_name(self.worker_id, self._epoch)
        return PrefixPublisher(index, member, holder, settings.prefix_index, self._presence.members)

    def served(self, request: AcceptedRequest, answer: str) -> None:
        """Report a conversation that the engine has served to the prefix index."""
        if self._publisher is not None and request.policy.kv_caches:
            self._publisher.served(request.messages, answer, request.cache_namespace)

    def run(self, jobs: JobRunner[Any], *loops: Loop) -> int:
        """Run jobs, and the tier's own loops, until asked to stop. Blocks.

        Returns the process's exit status: 0 if asked to, 1 if it failed.
        """

        def drain() -> None:
            reporter.close()  # from now on no request is put into this worker's line
            self._drain()

        def broken() -> list[str]:
            """The names of broken loops without which requests would be lost or worked on twice."""
            return [loop.name for loop in (*self.in_flight.loops, reporter.loop, *worker.loops) if loop.broken]

        worker = RQWorker(
            self.redis,
            self.tier,
            # With the epoch, since RQ refuses a worker's name for minutes after a worker of that name was killed.
            member_name(self.worker_id, self._epoch),
            capacity=self._capacity,
            functions={FUNCTION_NAMES[self.tier]: jobs.run_job},
            store=self.store,
            hooks=Hooks(
                healthy=lambda: self.engine.alive and not self.in_flight.has_hung and not broken(),
                drain=drain,
            ),
        )
        reporter = Reporter(self._presence, partial(self._report, worker), self.lease_s)
        self.in_flight.start()
        self.reaper.loop.start()
        self.router.loop.start()
        reporter.start()
        if self._publisher is not None:
            self._publisher.loop.start()
        self.calibrations.loop.start()
        for loop in loops:
            loop.start()
        log.info("worker_ready tier=%s worker=%s model=%s", self.tier, self.worker_id, self.engine.model_name)
        try:
            worker.work(logging_level="WARNING")
        finally:
            for loop in loops:
                loop.close()
            if self._publisher is not None:
                self._publisher.close()
            reporter.close()
            self.router.loop.close()
            self.reaper.loop.close()
            self.in_flight.close()
            self.calibrations.close()
            alive = self.engine.alive
            self.engine.close()
        log.info("worker_ended worker=%s engine_alive=%s broken_loops=%s", self.worker_id, alive, broken())
        return 0 if alive and worker.told_to_stop else 1

    def _report(self, worker: RQWorker) -> WorkerReport:
        """The worker as of now."""
        return WorkerReport(
            worker_id=self.worker_id,
            tier=self.tier,
            epoch=self._epoch,
            host=socket.gethostname(),
            pid=os.getpid(),
            model=self.engine.model_name,
            engine=self.engine.engine_name,
            ready=self.engine.alive,
            capacity=self._capacity,
            in_flight=len(self.in_flight),
            jobs_done=worker.jobs_done,
            work_tokens_per_s=worker.throughput.tokens_per_s,
            cache=self.engine.cache_statistics(),
            verification=self.engine.verification_statistics(),
            started_at_s=self._started_at_s,
            reported_at_s=self.clock(),
        )

    def _drain(self) -> None:
        """Let requests in flight finish within the grace time, then hand the rest back."""
        if not self.in_flight.wait_until_empty(self._grace_s):
            log.info("handing_back requests=%d", len(self.in_flight))
            self.in_flight.stop_all()
            self.in_flight.wait_until_empty(HAND_BACK_S)


def _end_at_once() -> None:
    """End the process even though a thread hangs in the engine. Its supervisor starts a new one."""
    logging.shutdown()
    os._exit(1)
