"""RQ as the transport: two tiers' queues, msgpack, and a fixed table of function names instead of imports.

An RQ job holds a function's name and a request's id. Whoever can write to Redis can still name only what is in the
worker's table: `job_class` refuses every other name and every callback, and nothing is ever unpickled.
"""

from collections.abc import Callable, Mapping
from typing import Any, cast

import msgpack
from redis import Redis
from redis.client import Pipeline
from rq import Queue
from rq.executions import Execution
from rq.job import Job
from rq.registry import StartedJobRegistry

from broker.run_queues import QUEUE_NAMES, RunQueues
from schemas.policy import Tier
from schemas.routing_decision import RoutingDecision

#: The function that each tier's job names. A worker's table maps it to what it runs.
FUNCTION_NAMES = {Tier.EDGE: "workers.edge.drafting.draft", Tier.CLOUD: "workers.cloud.verifying.verify"}
#: Seconds that RQ keeps the job of a function that raised, for `rq info` and the dashboard.
FAILURE_TTL_S = 3600


class ForbiddenFunction(Exception):
    """A job names something that is not in the worker's table. It is not run."""


class MsgpackSerializer:
    """RQ's serializer protocol over msgpack: plain data in, plain data out."""

    @staticmethod
    def dumps(value: object) -> bytes:
        """Pack plain data. Raises TypeError for anything else."""
        return cast("bytes", msgpack.packb(value))

    @staticmethod
    def loads(raw: bytes) -> Any:
        """Unpack plain data. Raises ValueError for bytes that are not msgpack."""
        return msgpack.unpackb(raw)


class TransportJob(Job):
    """An RQ job that never imports anything. On its own it can be queued and looked at, not performed."""

    functions: Mapping[str, Callable[[str], None]] = {}

    @property
    def func(self) -> Callable[[str], None]:
        """The function in the worker's table. Raises `ForbiddenFunction` for every other name, and for callbacks."""
        if callbacks := self._success_callback_name or self._failure_callback_name or self._stopped_callback_name:
            raise ForbiddenFunction(f"job {self.id} names the callback {callbacks!r}; none is ever called")
        name = self.func_name
        if self.instance is not None or not isinstance(name, str) or name not in self.functions:
            raise ForbiddenFunction(f"job {self.id} names {name!r}, which is not in this worker's table")
        return self.functions[name]

    @property
    def request_id(self) -> str:
        """The request that the job is about. Raises `ForbiddenFunction` for a job with any other arguments."""
        arguments = self.args
        if self.kwargs or not isinstance(arguments, list) or len(arguments) != 1 or not isinstance(arguments[0], str):
            raise ForbiddenFunction(f"job {self.id} has other arguments than one request's id")
        return arguments[0]

    @property
    def should_retry(self) -> bool:
        """False: requests have attempts of their own, and a job that is refused is refused for good."""
        return False

    @property
    def success_callback(self) -> None:
        """None: callbacks are imports by another name."""

    @property
    def failure_callback(self) -> None:
        """None: callbacks are imports by another name."""

    @property
    def stopped_callback(self) -> None:
        """None: callbacks are imports by another name."""

    def send_webhooks(self, *_arguments: object, **_options: object) -> None:
        """Do nothing: RQ's webhooks are unsigned and follow any URL."""


class StartedJobs(StartedJobRegistry):
    """RQ's registry of jobs in workers' hands, with their ends by a clock that all hosts share.

    RQ's own notes them by each host's clock and compares them with another's: a worker that is a minute ahead would
    take what all others have in hand for abandoned.
    """

    def __init__(self, job: Job, clock: Callable[[], float]) -> None:
        super().__init__(job.origin, connection=job.connection, job_class=type(job), serializer=job.serializer)
        self._clock = clock

    def add_execution(self, execution: Execution, pipeline: Pipeline, ttl: int = 0, xx: bool = False) -> int:
        """As RQ's, by the shared clock."""
        return cast("int", pipeline.zadd(self.key, {execution.composite_key: self._clock() + ttl}, xx=xx))


class WorkerJob(TransportJob):
    """A job as a worker has it. Made by `job_class`."""

    clock: Callable[[], float]

    @property
    def started_job_registry(self) -> StartedJobs:
        """Where the job is noted while it is in the worker's hands."""
        return StartedJobs(self, type(self).clock)


def job_class(functions: Mapping[str, Callable[[str], None]], clock: Callable[[], float]) -> type[WorkerJob]:
    """A job class that can perform these functions and nothing else. `clock`: the time that all hosts share."""
    return type("WorkerJob", (WorkerJob,), {"functions": functions, "clock": staticmethod(clock)})


def clean_registries(queue: Queue, now_s: float) -> None:
    """RQ's upkeep of the registries that our jobs come into, at `now_s` of the clock that all hosts share.

    A job that no worker renews any more becomes a failed one; its request is looked after by the reaper.
    """
    for registry in (queue.finished_job_registry, queue.started_job_registry, queue.failed_job_registry):
        registry.cleanup(now_s)


def queue(redis: Redis, tier: Tier, jobs: type[TransportJob] = TransportJob) -> Queue:
    """The queue of a tier."""
    return Queue(QUEUE_NAMES[tier], connection=redis, serializer=MsgpackSerializer, job_class=jobs)


class RoutedQueue(Queue):
    """A tier's queue whose jobs wait on the queue of the worker that they are for."""

    def __init__(self, redis: Redis, tier: Tier, run_queues: RunQueues, route: RoutingDecision | None) -> None:
        super().__init__(QUEUE_NAMES[tier], connection=redis, serializer=MsgpackSerializer, job_class=TransportJob)
        self._run_queues = run_queues
        self._route = route

    def push_job_id(self, job_id: str, pipeline: Pipeline | None = None, at_front: bool = False) -> None:
        """As RQ's, but onto the worker's own queue, if there is a route and the worker still lives."""
        worker, tokens = (self._route.worker, self._route.work_tokens) if self._route else (None, 0)
        self._run_queues.push(job_id, worker, tokens, at_front=at_front, pipeline=pipeline)


class JobQueues:
    """Puts requests' jobs onto the tiers' queues."""

    def __init__(self, redis: Redis, job_ttl_s: int) -> None:
        self._redis = redis
        self._job_ttl_s = job_ttl_s
        self._queues = {tier: RunQueues(redis, tier) for tier in Tier}

    def push(
        self,
        request_id: str,
        tier: Tier,
        attempt: int,
        *,
        route: RoutingDecision | None = None,
        at_front: bool = False,
        pipeline: Pipeline | None = None,
    ) -> None:
        """Put the request's job where the route says, or on the queue that the tier shares.

        Pushing twice is harmless: the second finds nothing to do.
        """
        RoutedQueue(self._redis, tier, self._queues[tier], route).enqueue_call(
            FUNCTION_NAMES[tier],
            args=(request_id,),
            job_id=_job_id(request_id, tier, attempt),
            # RQ would otherwise describe the job by its arguments, in its log and in Redis.
            description=FUNCTION_NAMES[tier],
            timeout=self._job_ttl_s,
            ttl=self._job_ttl_s,
            result_ttl=0,
            failure_ttl=FAILURE_TTL_S,
            at_front=at_front,
            pipeline=pipeline,
        )

    def holds(self, request_id: str, tier: Tier, attempt: int) -> bool:
        """Whether the job of this attempt is on a queue."""
        return self._queues[tier].holds(_job_id(request_id, tier, attempt))

    def length(self, tier: Tier) -> int:
        """Jobs that wait for the tier."""
        return self._queues[tier].num_waiting()


def _job_id(request_id: str, tier: Tier, attempt: int) -> str:
    return f"{request_id}-{tier}-{attempt}"
