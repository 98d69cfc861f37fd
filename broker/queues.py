"""RQ as the transport: two queues, msgpack, and a fixed table of function names instead of imports.

An RQ job holds a function's name and a request's id. Whoever can write to Redis can still name only what is in the
worker's table: `job_class` refuses every other name and every callback, and nothing is ever unpickled.
"""

from collections.abc import Callable, Mapping
from typing import Any, cast

import msgpack
from redis import Redis
from redis.client import Pipeline
from rq import Queue
from rq.job import Job

from schemas.policy import Tier

#: The queue that each tier's workers listen on.
QUEUE_NAMES = {Tier.EDGE: "edge", Tier.CLOUD: "verify"}
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
        """The function in the worker's table. Raises `ForbiddenFunction` for every other name."""
        name = self.func_name
        if self.instance is not None or not isinstance(name, str) or name not in self.functions:
            raise ForbiddenFunction(f"job {self.id} names {name!r}, which is not in this worker's table")
        return self.functions[name]

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


def job_class(functions: Mapping[str, Callable[[str], None]]) -> type[TransportJob]:
    """A job class that can perform these functions and nothing else."""
    return type("WorkerJob", (TransportJob,), {"functions": functions})


def queue(redis: Redis, tier: Tier, jobs: type[TransportJob] = TransportJob) -> Queue:
    """The queue of a tier."""
    return Queue(QUEUE_NAMES[tier], connection=redis, serializer=MsgpackSerializer, job_class=jobs)


class JobQueues:
    """Puts requests' jobs onto the tiers' queues."""

    def __init__(self, redis: Redis, job_ttl_s: int) -> None:
        self._redis = redis
        self._job_ttl_s = job_ttl_s
        self._queues = {tier: queue(redis, tier) for tier in Tier}

    def push(
        self, request_id: str, tier: Tier, attempt: int, *, at_front: bool = False, pipeline: Pipeline | None = None
    ) -> None:
        """Put the request's job onto the tier's queue. Pushing twice is harmless: the second finds nothing to do."""
        self._queues[tier].enqueue_call(
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
        """Whether the job of this attempt is on the queue."""
        return self._redis.lpos(self._queues[tier].key, _job_id(request_id, tier, attempt)) is not None

    def length(self, tier: Tier) -> int:
        """Jobs that wait for the tier."""
        return int(self._queues[tier].count)


def _job_id(request_id: str, tier: Tier, attempt: int) -> str:
    return f"{request_id}-{tier}-{attempt}"
