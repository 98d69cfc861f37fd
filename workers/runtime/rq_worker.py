"""One RQ worker process with many requests in flight on one engine.

RQ's own `Worker` forks for each job, which an engine that holds a model cannot survive, and takes whichever job comes
next. This one takes the requests whose turn it is (`broker.request_store`), each on a thread that only waits for the
engine, and is an RQ worker in all that others see: registration, heartbeats, commands, statistics, suspension. RQ's
list of jobs shows that there is work, never which; what is in it and stands for no request is refused here. Knows no
engine and no HTTP.

It touches semi-private parts of RQ 3.0 (`_stop_requested`, `handle_job_failure`): rq is pinned below 3.1.
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
from typing import Any, cast

from redis import Redis
from redis.client import PubSub
from redis.exceptions import RedisError
from rq.command import handle_command, parse_payload
from rq.exceptions import DeserializationError, NoSuchJobError
from rq.job import Job
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

#: Seconds for which the worker waits for anything at once; a stop request is noticed after at most this long.
WAIT_S = 1.0
#: Seconds between looks for work that nobody announced: by an idle worker, and by one that saw others with a queue.
LOOK_S, NEAR_LOOK_S = 2.0, 0.5
#: Seconds between looks at RQ's own: suspension, registries, jobs that stand for no request; and how many of those are
#: removed in one look.
UPKEEP_S, REFUSED_AT_ONCE = 4.0, 100
#: Seconds between heartbeats of the RQ worker.
HEARTBEAT_S = 10.0
#: RQ's commands that name one job.
STOP_COMMANDS = ("stop-job", "stop-execution")


class NoDeathPenalty(BaseDeathPenalty):
    """No timeout by signal, which would hit whatever the main thread happens to be in."""

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


class RQWorker(BaseWorker):
    """Works on up to `capacity` requests at once, each by the function that its tier's jobs name.

    The worker stops when told to or when it is not healthy any more. While Redis is away it waits.
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
        super().__init__(
            [rq_transport.queue(redis, tier, rq_transport.job_class(functions))],
            name=name,
            connection=redis,
            job_class=rq_transport.job_class(functions),
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
        self._lock = threading.Lock()
        #: How fast the requests get done.
        self.throughput = Throughput()
        #: Requests that this process has worked on, whatever became of them.
        self.jobs_done = 0
        self._unreported_jobs, self._unreported_s = 0, 0.0
        self._upkeep_at_s = 0.0
        self._must_empty = False
        self._look_s = LOOK_S
        #: What goes on beside the requests, while the worker works.
        self.loops = (Loop("rq-heartbeats", self._beat, every_s=HEARTBEAT_S),)

    @property
    def told_to_stop(self) -> bool:
        """Whether it was asked to stop; if it ended without that, something broke."""
        return bool(self._stop_requested)

    def request_stop(self, signum: int, frame: FrameType | None) -> None:  # noqa: ARG002 - a signal handler
        """Take no more requests; what is in flight is drained. Never raises into the main thread's Redis calls."""
        log.info("stop_requested signal=%s", signal.Signals(signum).name)
        self._stop_requested = True

    def work(self, *arguments: object, **options: object) -> bool:
        """Run until stopped. Blocks; must be called from the main thread."""
        (beats,) = self.loops
        beats.start(after_s=HEARTBEAT_S)  # a name whose heartbeat is there already is refused
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
        """Take requests and let the pool's threads run them, until the worker is to stop. No job is ever returned."""
        with self.connection.pubsub(ignore_subscribe_messages=True) as announcements:
            announcements.subscribe(keys.wake(line_of(self._tier, self.name)), keys.wake(self._tier))
            while not self._stop_requested and self._hooks.healthy():
                try:
                    self._keep_up()
                    self._take(announcements)
                except REDIS_AWAY as error:
                    # A request that was taken all the same comes back when its lease lapses.
                    log.warning("redis_away error=%s", error)
                    time.sleep(WAIT_S)

    def _take(self, announcements: PubSub) -> None:
        """Take what there is room for, or wait until there may be something."""
        room = self._slots.wait_for_room(WAIT_S, empty=self._must_empty)
        if not room:
            return
        while announcements.get_message() is not None:  # of what is about to be taken
            pass
        taken = self._store.take(self._tier, self.name, room=room, busy=self._slots.num_taken > 0)
        self._must_empty = taken.must_empty
        for leased in taken.requests:
            self._begin(leased)
        if taken.must_empty:
            log.info("next_request_waits_to_be_alone tier=%s", self._tier)
        elif not taken.requests:
            look_until = time.monotonic() + (NEAR_LOOK_S if taken.others_wait else LOOK_S)
            while (remaining := look_until - time.monotonic()) > 0 and not self._stop_requested:
                if announcements.get_message(timeout=min(remaining, WAIT_S)) is not None:
                    break

    def _begin(self, leased: LeasedRequest) -> None:
        if not self._slots.num_taken:
            self._show(WorkerStatus.BUSY)
        self._slots.take(leased.lease.work_id, alone=leased.num_lost > 0)
        self.throughput.begun()
        self._pool.submit(self._perform, leased)

    def _perform(self, leased: LeasedRequest) -> None:
        request_id, work_id, began = leased.lease.request_id, leased.lease.work_id, time.monotonic()
        try:
            self._run(leased, lambda: self._slots.share(work_id))
        except RedisError as error:
            # The request's own record decides what becomes of it: its lease lapses and it is taken over.
            log.warning("job_not_closed request_id=%s error=%s", request_id, error)
        except Exception:
            log.exception("job_broke_off request_id=%s", request_id)
        finally:
            self.throughput.ended(leased.work_tokens)
            with self._lock:
                self.jobs_done += 1
                self._unreported_jobs += 1
                self._unreported_s += time.monotonic() - began
            if self._slots.give_back(work_id) and not self._stop_requested:
                self._show(WorkerStatus.IDLE)

    def _show(self, status: WorkerStatus) -> None:
        try:
            self.set_state(status)
        except RedisError as error:
            log.warning("redis_away error=%s", error)

    def _keep_up(self) -> None:
        """Look after what is RQ's, from time to time. Raises Redis's errors."""
        if time.monotonic() < self._upkeep_at_s:
            return
        self._upkeep_at_s = time.monotonic() + UPKEEP_S
        self.check_for_suspension(burst=False)
        if self.should_run_maintenance_tasks:
            self.run_maintenance_tasks()
        self._refuse_foreign_jobs()

    def _refuse_foreign_jobs(self) -> None:
        """Remove jobs from the head of RQ's list that stand for no waiting request of ours."""
        (queue,) = self.queues
        for _ in range(REFUSED_AT_ONCE):
            raw_id = cast("bytes | None", self.connection.lindex(queue.key, 0))
            if raw_id is None or self._is_ours(raw_id):
                return
            if self.connection.lrem(queue.key, 1, cast("str", raw_id)):  # and no other worker was faster
                self._refuse(raw_id, queue)

    def _is_ours(self, raw_id: bytes) -> bool:
        request_id, _, tier = raw_id.decode(errors="replace").rpartition("-")
        waits = self.connection.hget(keys.request(request_id), "state") == states.WAITING[self._tier].encode()
        return waits and tier == self._tier

    def _refuse(self, raw_id: bytes, queue: Queue) -> None:
        """Let a job fail that would run what is not in the table, or that cannot be read; forget any other."""
        job = None
        try:
            job = self.job_class.fetch(raw_id.decode(), self.connection, self.serializer)
            asked = job.func, job.request_id
            log.info("job_without_request job=%r request_id=%r", job.id, asked[1])
            job.delete(remove_from_queue=False)
        except REDIS_AWAY:
            raise
        except NoSuchJobError:
            return
        except Exception as error:  # noqa: BLE001 - an id or a record that RQ cannot read must not end the worker
            log.error("job_refused job=%r error=%s", raw_id, error)  # noqa: TRY400 - RQ's stack says no more
            self._store.count("jobs_refused")
            if job is not None and isinstance(error, rq_transport.ForbiddenFunction | DeserializationError):
                self.handle_job_failure(job, queue, exc_string=f"{type(error).__name__}: {error}")

    def check_for_suspension(self, burst: bool) -> None:
        """As RQ's, but asked for with one command, and a Redis that is away is no reason to end."""
        try:
            if self.connection.exists(WORKERS_SUSPENDED):
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
                queue.release_maintenance_lock()
        self.last_cleaned_at = datetime.now(UTC)

    def execute_job(self, job: Job, queue: Queue) -> None:
        """Never called: see `dequeue_job_and_maintain_ttl`."""
        raise NotImplementedError

    def handle_payload(self, message: object) -> None:
        """As RQ's, but a command that cannot be obeyed does not end the thread that hears the next one."""
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
        """Do nothing: many jobs share this process's title."""

    def teardown(self) -> None:
        """Drain, then say good-bye."""
        self._hooks.drain()
        self._pool.shutdown(wait=True)
        try:
            self._report_jobs()
            super().teardown()
        except RedisError as error:
            log.warning("redis_away error=%s", error)

    def handle_exception(self, job: Job, *exc_info: Any) -> None:
        """Log it without what the job holds."""
        log.error("job_failed job=%s error=%s", job.id, type(exc_info[1]).__name__)

    def _stop_job(self, job_id: str) -> None:
        """Cancel the request that RQ's command names by its job."""
        self._store.cancel(job_id.removesuffix(f"-{self._tier}"))

    def _beat(self) -> None:
        self.heartbeat()
        self._report_jobs()

    def _report_jobs(self) -> None:
        """Add what was done since the last report to RQ's statistics of this worker."""
        with self._lock:
            num_jobs, self._unreported_jobs = self._unreported_jobs, 0
            took_s, self._unreported_s = self._unreported_s, 0.0
        if num_jobs:
            with self.connection.pipeline(transaction=False) as pipeline:
                pipeline.hincrby(self.key, "successful_job_count", num_jobs)
                self.increment_total_working_time(timedelta(seconds=took_s), pipeline)
                pipeline.execute()
