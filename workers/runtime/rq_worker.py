"""One RQ worker process with many jobs in flight on one engine.

RQ's own `Worker` forks for each job, which an engine that holds a model cannot survive. This one runs each job on a
thread that only waits for the engine, keeps RQ's registries, heartbeats and statistics, so that `rq info` and
rq-dashboard see it, and takes a job off the queue only when it has room for it. Knows no engine and no HTTP.

It touches semi-private parts of RQ 3.0 (`_stop_requested`, `executions`, `_finalize_failure`): rq is pinned below 3.1.
"""

import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from types import FrameType
from typing import Any

from redis import Redis
from redis.exceptions import RedisError
from rq.exceptions import DeserializationError
from rq.executions import Execution
from rq.job import Job
from rq.queue import Queue
from rq.timeouts import BaseDeathPenalty
from rq.worker import BaseWorker, WorkerStatus
from rq.worker_registration import clean_worker_registry

from broker import rq_transport, run_queues
from broker.background import Loop
from broker.clock import ServerClock
from broker.connection import REDIS_AWAY
from schemas.policy import Tier
from workers.runtime.throughput import Throughput
from workers.runtime.work_stealing import Forager

log = logging.getLogger(__name__)

#: Seconds of one blocking look at the queue; a stop request is noticed after at most this long.
DEQUEUE_S = 1
#: Seconds between heartbeats of the RQ worker and its executions.
HEARTBEAT_S = 10.0
#: Seconds for which a heartbeat counts; RQ takes what has not been renewed for dead.
HEARTBEAT_TTL_S = 60


class NoDeathPenalty(BaseDeathPenalty):
    """No timeout by signal, which would hit whichever job the main thread happens to be in."""

    def setup_death_penalty(self) -> None:
        """Do nothing."""

    def cancel_death_penalty(self) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class Hooks:
    """What a worker calls of the process that it runs in."""

    #: False ends the worker.
    healthy: Callable[[], bool]
    #: Called once, from the main thread, when the worker ends; returns when nothing is left in flight.
    drain: Callable[[], None]
    #: Given the request id of a job that RQ was told to stop.
    cancel: Callable[[str], object]
    #: Called for each job that would run what is not in the table, or that cannot be read.
    refused: Callable[[], None]


class ConcurrentWorker(BaseWorker):
    """Keeps up to `capacity` jobs in flight.

    `functions` is the table of what jobs may name. The worker stops when told to or when it is not healthy any more.
    While Redis is away it waits.
    """

    death_penalty_class = NoDeathPenalty

    def __init__(
        self,
        redis: Redis,
        tier: Tier,
        name: str,
        *,
        capacity: int,
        functions: Mapping[str, Callable[[str], None]],
        hooks: Hooks,
    ) -> None:
        self._clock = ServerClock(redis)
        jobs = rq_transport.job_class(functions, self._clock)
        super().__init__(
            [rq_transport.queue(redis, tier, jobs)],
            name=name,
            connection=redis,
            job_class=jobs,
            serializer=rq_transport.MsgpackSerializer,
            job_monitoring_interval=HEARTBEAT_TTL_S,
            log_job_description=False,
        )
        self._run_queues = run_queues.RunQueues(redis, tier)
        own_queue = run_queues.own_queue(tier, name)
        self._own_list = run_queues.list_of(own_queue)
        self._forager = Forager(self._run_queues, own_queue, capacity, hooks.healthy)
        #: How fast the jobs get done.
        self.throughput = Throughput()
        self._slots = threading.BoundedSemaphore(capacity)
        self._pool = ThreadPoolExecutor(capacity, thread_name_prefix="job")
        self._running: dict[str, tuple[Job, Execution]] = {}
        self._running_lock = threading.Lock()
        self._hooks = hooks
        #: Jobs that this process has run, whatever became of them.
        self.jobs_done = 0
        self._heartbeat_at = 0.0
        beats = Loop("rq-heartbeats", self._beat, every_s=HEARTBEAT_S)
        #: What goes on beside the jobs, while the worker works.
        self.loops = (beats, self._forager.loop)
        self._beats = beats

    @property
    def told_to_stop(self) -> bool:
        """Whether it was asked to stop; if it ended without that, something broke."""
        return bool(self._stop_requested)

    def request_stop(self, signum: int, frame: FrameType | None) -> None:  # noqa: ARG002 - a signal handler
        """Take no more jobs; what is in flight is drained. Never raises into the main thread's Redis calls."""
        log.info("stop_requested signal=%s", signal.Signals(signum).name)
        self._stop_requested = True

    def work(self, *arguments: object, **options: object) -> bool:
        """Run until stopped. Blocks; must be called from the main thread."""
        self._beats.start(after_s=HEARTBEAT_S)  # a name whose heartbeat is there already is refused
        self._forager.start()
        try:
            worked: bool = super().work(*arguments, **options)
            return worked
        finally:
            self._beats.close(HEARTBEAT_S)

    def dequeue_job_and_maintain_ttl(
        self,
        timeout: int | None,  # noqa: ARG002 - RQ's signature
        max_idle_time: int | None = None,  # noqa: ARG002 - RQ's signature
    ) -> tuple[Job, Queue] | None:
        """The next job, once there is room for it; None when the worker is to stop."""
        while not self._stop_requested and self._hooks.healthy():
            if not self._slots.acquire(timeout=DEQUEUE_S):
                continue
            taken = None
            try:
                taken = self._take()
                if taken is not None:
                    taken[0].redis_server_version = self.get_redis_server_version()
            except REDIS_AWAY as error:
                # A job that was taken all the same is pushed again by the reaper.
                taken = None
                log.warning("redis_away error=%s", error)
                time.sleep(DEQUEUE_S)
                continue
            finally:
                if taken is None:
                    self._slots.release()
            if taken is not None:
                job, queue = taken
                if not self._hooks.healthy():  # the engine died while this looked at the queue
                    self._put_back(job, queue)
                    return None
                return job, queue
        return None

    def _take(self) -> tuple[Job, Queue] | None:
        """The next job of this worker's own queue; blocks for `DEQUEUE_S` at most. None: none came, or it is gone.

        RQ's own reliable dequeue, but for the list that it takes from.
        """
        (queue,) = self.queues
        raw_id = self.connection.blmove(self._own_list, queue.intermediate_queue_key, DEQUEUE_S)
        if raw_id is None:
            return None
        taken: tuple[Job, Queue] | None = None
        try:
            taken = self.queue_class._fetch_dequeued_job(  # noqa: SLF001 - see above
                self.connection,
                queue.key,
                raw_id.decode(),
                job_class=self.job_class,
                serializer=self.serializer,
                death_penalty_class=self.death_penalty_class,
            )
        except REDIS_AWAY:
            raise
        except Exception as error:  # noqa: BLE001 - an id or a record that RQ cannot read must not end the worker
            self._count_refused(raw_id.decode(errors="backslashreplace"), error)
        if taken is None:
            self.connection.lrem(queue.intermediate_queue_key, 1, raw_id)
            self._run_queues.done(raw_id)
        return taken

    def check_for_suspension(self, burst: bool) -> None:
        """As RQ's, but a Redis that is away is no reason to end."""
        try:
            super().check_for_suspension(burst)
        except REDIS_AWAY as error:
            log.warning("redis_away error=%s", error)

    def run_maintenance_tasks(self) -> None:
        """As RQ's, but neither a Redis that is away nor what RQ cannot read in its own keys is a reason to end."""
        try:
            super().run_maintenance_tasks()
        except REDIS_AWAY as error:
            log.warning("redis_away error=%s", error)
        except Exception as error:  # noqa: BLE001 - see above; requests have records and a reaper of their own
            log.error("maintenance_broke_off error=%r", error)  # noqa: TRY400 - RQ's stack says no more

    def clean_registries(self) -> None:
        """As RQ's, but what has lapsed is told by the clock that all hosts share."""
        now_s = self._clock()
        for queue in self.queues:
            if queue.acquire_maintenance_lock():
                rq_transport.clean_registries(queue, now_s)
                clean_worker_registry(queue)
                queue.intermediate_queue.cleanup(self, queue)
                queue.release_maintenance_lock()
        self.last_cleaned_at = datetime.now(UTC)

    def execute_job(self, job: Job, queue: Queue) -> None:
        """Start the job on the pool and return at once.

        What RQ writes before a job, in one round trip instead of three.
        """
        try:
            with self.connection.pipeline() as pipeline:
                execution = Execution.create(job, HEARTBEAT_TTL_S, pipeline=pipeline, worker_name=self.name)
                self.set_state(WorkerStatus.BUSY, pipeline=pipeline)
                job.prepare_for_execution(self.name, pipeline=pipeline)
                pipeline.persist(job.key)
                pipeline.lrem(queue.intermediate_queue_key, 1, job.id)
                pipeline.execute()
        except RedisError as error:
            # The request waits on in its record, and its job is pushed again.
            log.warning("job_not_started job=%s error=%s", job.id, error)
            self._slots.release()
            self._forager.has_room()
            return
        self.throughput.begun()
        self.executions[execution.id] = execution
        with self._running_lock:
            self._running[execution.id] = (job, execution)
        self._pool.submit(self._perform, job, queue, execution)

    def heartbeat(self, timeout: int | None = None, pipeline: object = None) -> None:
        """As RQ's, but not more often than is of use: RQ asks for one after every job."""
        now = time.monotonic()
        if pipeline is None and now - self._heartbeat_at < HEARTBEAT_S / 2:
            return
        self._heartbeat_at = now
        try:
            super().heartbeat(timeout, pipeline=pipeline)
        except RedisError as error:
            log.warning("redis_away error=%s", error)

    def get_heartbeat_ttl(self, job: Job, working_time: float = 0.0) -> int:  # noqa: ARG002 - RQ's signature
        """Seconds for which an execution's heartbeat counts."""
        return HEARTBEAT_TTL_S

    def request_stop_execution(self, execution_id: str) -> None:
        """RQ's stop command: cancels the request whose job this is."""
        with self._running_lock:
            running = self._running.get(execution_id)
        if running is not None:
            job, _ = running
            with suppress(rq_transport.ForbiddenFunction, DeserializationError):  # which ends by itself
                self._hooks.cancel(job.request_id)

    def handle_payload(self, message: object) -> None:
        """As RQ's, but a command that cannot be obeyed does not end the thread that hears the next one."""
        try:
            super().handle_payload(message)
        except REDIS_AWAY:
            raise
        except Exception as error:  # noqa: BLE001 - see above
            log.error("command_refused error=%r", error)  # noqa: TRY400 - RQ's stack says no more

    def procline(self, message: str) -> None:
        """Do nothing: many jobs share this process's title."""

    def teardown(self) -> None:
        """Leave what waits to others, drain, then say good-bye."""
        self._forager.close()
        self._hooks.drain()
        self._pool.shutdown(wait=True)
        try:
            super().teardown()
        except RedisError as error:
            log.warning("redis_away error=%s", error)

    def handle_exception(self, job: Job, *exc_info: Any) -> None:
        """As RQ's, and what was refused is counted. Neither logs what a job holds."""
        error = exc_info[1]
        if isinstance(error, rq_transport.ForbiddenFunction | DeserializationError):
            self._count_refused(job.id, error)
        else:
            log.error("job_failed job=%s error=%s", job.id, type(error).__name__, exc_info=exc_info)

    def _count_refused(self, job_id: str, error: Exception) -> None:
        log.error("job_refused job=%r error=%s", job_id, error)
        try:
            self._hooks.refused()
        except RedisError as away:
            log.warning("redis_away error=%s", away)

    def _put_back(self, job: Job, queue: Queue) -> None:
        """Leave the job to another worker, as if it had not been taken."""
        self._slots.release()
        with self.connection.pipeline(transaction=True) as pipeline:
            self._run_queues.push(job.id, None, 0, at_front=True, pipeline=pipeline)
            pipeline.lrem(queue.intermediate_queue_key, 1, job.id)
            pipeline.execute()

    def _perform(self, job: Job, queue: Queue, execution: Execution) -> None:
        num_tokens = 0
        try:
            num_tokens = self._run(job, queue, execution)
        except RedisError as error:
            # The request's own record decides what becomes of it: its lease lapses and it is taken over.
            log.warning("job_not_closed job=%s error=%s", job.id, error)
        finally:
            self.throughput.ended(num_tokens)
            with self._running_lock:
                self._running.pop(execution.id, None)
                self.jobs_done += 1
                idle = not self._running
            self._slots.release()
            self._forager.has_room()
            if idle and not self._stop_requested:
                self._say_idle()

    def _run(self, job: Job, queue: Queue, execution: Execution) -> int:
        """Run the job's function and close the job. Gives the tokens of work that it counted for.

        After success, what RQ writes in one round trip instead of five: our jobs have no result, dependents, repeats
        or callbacks to look for. After a failure, which a stage turns into data and so is a bug, RQ's own way.
        """
        try:
            job.func(job.request_id)
        except Exception:  # noqa: BLE001 - RQ keeps its traceback
            self._finalize_failure(job, queue, execution, sys.exc_info())
            return self._run_queues.done(job.id)
        with self.connection.pipeline() as pipeline:
            self.increment_successful_job_count(pipeline=pipeline)
            self.increment_total_working_time(datetime.now(UTC) - job.started_at, pipeline)
            pipeline.delete(job.key)
            self.cleanup_execution(job, pipeline=pipeline, execution=execution)
            self._run_queues.done_in(pipeline, job.id)
            return int(pipeline.execute()[-1])

    def _say_idle(self) -> None:
        try:
            self.set_state(WorkerStatus.IDLE)
        except RedisError as error:
            log.warning("redis_away error=%s", error)

    def _beat(self) -> None:
        with self._running_lock:
            running = list(self._running.values())
        self.heartbeat()
        for job, execution in running:
            self.maintain_heartbeats(job, execution)
