"""One RQ worker process with many requests in flight on one engine.

RQ's own `Worker` forks for each job, which a process with a loaded engine does not survive, and takes the next job in
RQ's list. This worker takes requests in the order of the lines (`broker.request_store`) and gives each a thread, which
only waits for the engine. To others it is an RQ worker: registration, heartbeats, commands, statistics, suspension.
RQ's list only shows how many requests wait; jobs in it that have no request are refused here. Knows no engine and no
HTTP.

It uses semi-private parts of RQ 3.0 (`_stop_requested`, `handle_job_failure`): rq is pinned below 3.1.
"""

import logging
import signal
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import FrameType
from typing import cast

from redis import Redis
from redis.client import PubSub
from redis.exceptions import RedisError
from rq.command import handle_command, parse_payload
from rq.exceptions import DeserializationError, NoSuchJobError
from rq.queue import Queue
from rq.suspension import WORKERS_SUSPENDED
from rq.timeouts import BaseDeathPenalty
from rq.worker import BaseWorker, WorkerStatus
from rq.worker_registration import clean_worker_registry

from broker import keys, rq_transport, states
from broker.background import Loop
from broker.clock import ServerClock
from broker.connection import REDIS_AWAY
from broker.leases import LeasedRequest
from broker.request_store import RequestStore, line_of
from schemas.policy import Tier
from workers.runtime.slots import Slots
from workers.runtime.throughput import Throughput

log = logging.getLogger(__name__)

#: The longest single wait, in seconds, and thus the longest time until a stop request is noticed.
WAIT_S = 1.0
#: Seconds until an idle worker asks for work without a wake-up: normally, and while other workers' lines have requests.
LOOK_S, NEAR_LOOK_S = 2.5, 0.5
#: Seconds between checks of RQ's state (suspension, registries, jobs without a request), and the most jobs to remove in
#: one check.
UPKEEP_S, REFUSED_AT_ONCE = 4.0, 100
#: Seconds between heartbeats of the RQ worker.
HEARTBEAT_S = 10.0
#: RQ's commands that name one job.
STOP_COMMANDS = ("stop-job", "stop-execution")


class NoDeathPenalty(BaseDeathPenalty):
    """No timeout by signal, which would interrupt the main thread anywhere."""

    def setup_death_penalty(self) -> None:
        """Do nothing."""

    def cancel_death_penalty(self) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class Hooks:
    """Callbacks from a worker to its process."""

    #: The worker ends when this returns False.
    healthy: Callable[[], bool]
    #: Called once, from the main thread, when the worker ends. Returns when no request is in flight.
    drain: Callable[[], None]


class RQWorker(BaseWorker):
    """Works on up to `capacity` requests at once, with the function in `functions` that the tier's jobs name.

    The worker ends when it is asked to or is no longer healthy. While Redis is away, it waits.
    """

    death_penalty_class = NoDeathPenalty

    def __init__(
        self,
        redis: Redis,
        tier: Tier,
        name: str,
        *,
        capacity: int,
        functions: Mapping[str, Callable[[LeasedRequest, Callable[[], None]], None]],
        store: RequestStore,
        hooks: Hooks,
    ) -> None:
        job_class = rq_transport.job_class(functions)
        super().__init__(
            [rq_transport.queue(redis, tier, job_class)],
            name=name,
            connection=redis,
            job_class=job_class,
            serializer=rq_transport.MsgpackSerializer,
            log_job_description=False,
        )
        self._tier = tier
        self._store = store
        self._hooks = hooks
        self._run = functions[rq_transport.FUNCTION_NAMES[tier]]
        self._clock = ServerClock(redis)
        self._slots = Slots(capacity)
        self._pool = ThreadPoolExecutor(capacity, thread_name_prefix="job")
        self._lock, self._showing = threading.Lock(), threading.Lock()
        #: The worker's measured speed.
        self.throughput = Throughput()
        #: Requests that this process has worked on, whatever their outcome.
        self.jobs_done = 0
        self._unreported_jobs, self._unreported_s = 0, 0.0
        self._upkeep_at_s = 0.0
        self._must_empty = False
        #: Background loops, which run as long as the worker.
        self.loops = (Loop("rq-heartbeats", self._beat, every_s=HEARTBEAT_S),)

    @property
    def told_to_stop(self) -> bool:
        """Whether the worker was asked to stop. If it ended without that, it failed."""
        return bool(self._stop_requested)

    def request_stop(self, signum: int, frame: FrameType | None) -> None:  # noqa: ARG002 - a signal handler
        """Take no more requests, and drain those in flight. Never raises into the main thread's Redis calls."""
        log.info("stop_requested signal=%s", signal.Signals(signum).name)
        self._stop_requested = True

    def work(self, *arguments: object, **options: object) -> bool:
        """Run until stopped. Blocks; must be called from the main thread."""
        (beats,) = self.loops
        beats.start(after_s=HEARTBEAT_S)  # after the registration, which fails if the name has a heartbeat already
        try:
            worked: bool = super().work(*arguments, **options)
            return worked
        finally:
            beats.close(HEARTBEAT_S)

    def dequeue_job_and_maintain_ttl(
        self,
        timeout: int | None,  # noqa: ARG002 - RQ's signature
        max_idle_time: int | None = None,  # noqa: ARG002 - RQ's signature
    ) -> None:
        """Take requests and run them on the pool's threads, until the worker must stop. Never returns a job."""
        with self.connection.pubsub(ignore_subscribe_messages=True) as wake_ups:
            while not self._stop_requested and self._hooks.healthy():
                self._keep_up()
                try:
                    if not wake_ups.subscribed:
                        wake_ups.subscribe(keys.wake(line_of(self._tier, self.name)), keys.wake(self._tier))
                    self._take(wake_ups)
                except RedisError as error:
                    # If TAKE ran and only its answer was lost, the requests are requeued when their leases lapse.
                    log.warning("redis_away error=%s", error)
                    time.sleep(WAIT_S)
                except Exception:  # RQ would end the worker, and with it every worker that meets the same
                    log.exception("requests_not_taken")
                    time.sleep(WAIT_S)

    def _take(self, wake_ups: PubSub) -> None:
        """Take as many requests as there is room for. If there are none, block until there may be some."""
        room = self._slots.wait_for_room(WAIT_S, empty=self._must_empty)
        if not room or not self._hooks.healthy():  # an engine that died has just freed its slots
            return
        while wake_ups.get_message() is not None:  # for requests that are about to be taken
            pass
        taken = self._store.take(self._tier, self.name, room=room, busy=self._slots.num_taken > 0)
        self._must_empty = taken.must_empty
        for leased in taken.requests:
            if self._hooks.healthy():
                self._begin(leased)
            else:  # it must not lose an attempt to an engine that it never reached
                self._store.hand_back(leased.lease)
        if taken.must_empty:
            log.info("next_request_waits_to_be_alone tier=%s", self._tier)
        elif not taken.requests:
            look_until = time.monotonic() + (NEAR_LOOK_S if taken.others_wait else LOOK_S)
            while (remaining := look_until - time.monotonic()) > 0 and not self._stop_requested:
                if wake_ups.get_message(timeout=min(remaining, WAIT_S)) is not None:
                    break

    def _begin(self, leased: LeasedRequest) -> None:
        self._slots.take(leased.lease.work_id, alone=leased.num_lost > 0)
        self._show_state()
        self.throughput.begun()
        self._pool.submit(self._perform, leased)

    def _perform(self, leased: LeasedRequest) -> None:
        request_id, work_id, began = leased.lease.request_id, leased.lease.work_id, time.monotonic()
        try:
            self._run(leased, lambda: self._slots.share(work_id))
        except RedisError as error:
            # The request is not lost: its lease lapses, and it is requeued.
            log.warning("job_not_closed request_id=%s error=%s", request_id, error)
        except Exception:
            log.exception("job_broke_off request_id=%s", request_id)
        finally:
            self.throughput.ended(leased.work_tokens)
            with self._lock:
                self.jobs_done += 1
                self._unreported_jobs += 1
                self._unreported_s += time.monotonic() - began
            self._slots.give_back(work_id)
            self._show_state()

    def _show_state(self) -> None:
        """Tell RQ whether the worker is busy, if that has changed."""
        with self._showing:
            status = WorkerStatus.BUSY if self._slots.num_taken else WorkerStatus.IDLE
            if status != self.get_state() and not self._stop_requested:
                try:
                    self.set_state(status)
                except RedisError as error:
                    log.warning("redis_away error=%s", error)

    def _keep_up(self) -> None:
        """Run RQ's maintenance if `UPKEEP_S` have passed. Whatever somebody put into RQ's keys ends no worker."""
        if time.monotonic() < self._upkeep_at_s:
            return
        self._upkeep_at_s = time.monotonic() + UPKEEP_S
        try:
            self.check_for_suspension(burst=False)
            if self.should_run_maintenance_tasks:
                self.run_maintenance_tasks()
            self._refuse_foreign_jobs()
        except RedisError as error:
            log.warning("maintenance_broke_off error=%s", error)

    def _refuse_foreign_jobs(self) -> None:
        """Remove jobs without a waiting request from the head of RQ's list."""
        (queue,) = self.queues
        for _ in range(REFUSED_AT_ONCE):
            raw_id = cast("bytes | None", self.connection.lindex(queue.key, 0))
            if raw_id is None or self._is_ours(raw_id):
                return
            if self.connection.lrem(queue.key, 1, cast("str", raw_id)):  # unless another worker has removed it
                self._refuse(raw_id, queue)

    def _is_ours(self, raw_id: bytes) -> bool:
        request_id = rq_transport.request_of(raw_id.decode(errors="replace"), self._tier)
        waited_in = states.WAITING[self._tier].encode()
        return request_id is not None and bool(self.connection.hget(keys.request(request_id), "state") == waited_in)

    def _refuse(self, raw_id: bytes, queue: Queue) -> None:
        """Fail a job that names a function outside the table or cannot be decoded; delete any other."""
        job = None
        try:
            job = self.job_class.fetch(raw_id.decode(), self.connection, self.serializer)
            _, request_id = job.func, job.request_id  # both raise for a job that must fail
            log.info("job_without_request job=%r request_id=%r", job.id, request_id)
            job.delete(remove_from_queue=False)
        except REDIS_AWAY:
            raise
        except NoSuchJobError:
            return
        except Exception as error:  # noqa: BLE001 - an id or a job that RQ cannot decode must not end the worker
            log.error("job_refused job=%r error=%s", raw_id, error)  # noqa: TRY400 - RQ's stack says no more
            self._store.count("jobs_refused")
            if job is not None and isinstance(error, rq_transport.ForbiddenFunction | DeserializationError):
                self.handle_job_failure(job, queue, exc_string=f"{type(error).__name__}: {error}")

    def check_for_suspension(self, burst: bool) -> None:
        """As RQ's, but with one command, and without ending the worker while Redis is away."""
        try:
            if self.connection.exists(WORKERS_SUSPENDED):
                super().check_for_suspension(burst)
        except REDIS_AWAY as error:
            log.warning("redis_away error=%s", error)

    def run_maintenance_tasks(self) -> None:
        """As RQ's, but without ending the worker while Redis is away or if RQ cannot read its own keys."""
        try:
            super().run_maintenance_tasks()
        except REDIS_AWAY as error:
            log.warning("redis_away error=%s", error)
        except Exception as error:  # noqa: BLE001 - see above; requests have records and a reaper of their own
            log.error("maintenance_broke_off error=%r", error)  # noqa: TRY400 - RQ's stack says no more

    def clean_registries(self) -> None:
        """As RQ's, but with Redis's clock, which all hosts share, instead of the host's."""
        now_s = self._clock()
        for queue in self.queues:
            if queue.acquire_maintenance_lock():
                rq_transport.clean_registries(queue, now_s)
                clean_worker_registry(queue)
                queue.release_maintenance_lock()
        self.last_cleaned_at = datetime.now(UTC)

    def handle_payload(self, message: object) -> None:
        """As RQ's, but a command that fails does not end the thread that receives commands."""
        try:
            command = parse_payload(message)
            if command["command"] in STOP_COMMANDS:
                self._stop_job(str(command.get("job_id")))
            else:
                handle_command(self, command)
        except REDIS_AWAY:
            raise
        except Exception as error:  # noqa: BLE001 - see above
            log.error("command_refused error=%r", error)  # noqa: TRY400 - RQ's stack says no more

    def procline(self, message: str) -> None:
        """Do nothing: RQ would show one job in the process's title, but many run here."""

    def teardown(self) -> None:
        """Drain, then unregister the worker."""
        self._hooks.drain()
        self._pool.shutdown(wait=True)
        try:
            self._report_jobs()
            super().teardown()
        except RedisError as error:
            log.warning("redis_away error=%s", error)

    def _stop_job(self, job_id: str) -> None:
        """Cancel the request of the job that RQ's command names."""
        request_id = rq_transport.request_of(job_id, self._tier)
        if request_id is not None:
            self._store.cancel(request_id)

    def _beat(self) -> None:
        self.heartbeat()
        self._report_jobs()

    def _report_jobs(self) -> None:
        """Add the jobs since the last report to RQ's statistics of this worker."""
        with self._lock:
            num_jobs, self._unreported_jobs = self._unreported_jobs, 0
            took_s, self._unreported_s = self._unreported_s, 0.0
        if num_jobs:
            with self.connection.pipeline(transaction=False) as pipeline:
                pipeline.hincrby(self.key, "successful_job_count", num_jobs)
                self.increment_total_working_time(timedelta(seconds=took_s), pipeline)
                pipeline.execute()
