"""RQ as the transport: one queue per tier, msgpack, and a fixed table of function names instead of imports.

An RQ job holds a function's name and a request's id. A job that somebody else wrote to Redis can still name only
functions in the worker's table: `job_class` refuses all other names and all callbacks, and nothing is ever unpickled.
"""

import functools
import time
import zlib
from collections.abc import Callable, Mapping
from typing import Any, cast

import msgpack
from redis import Redis
from rq import Queue
from rq.job import Job, JobStatus

from schemas.policy import Tier

#: The names of the tiers' queues in RQ.
QUEUE_NAMES = {Tier.EDGE: "edge", Tier.CLOUD: "verify"}
#: The function name in each tier's jobs. A worker's table maps it to a function.
FUNCTION_NAMES = {Tier.EDGE: "workers.edge.drafting.draft", Tier.CLOUD: "workers.cloud.verifying.verify"}
#: Seconds that RQ keeps the job of a function that raised, for `rq info` and the dashboard.
FAILURE_TTL_S = 3600


class ForbiddenFunction(Exception):
    """A job names a function that is not in the worker's table, or a callback. It is not run."""


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
    """An RQ job that never imports anything. This class can queue and read jobs; `job_class` makes ones that run."""

    functions: Mapping[str, Callable[..., None]] = {}

    @property
    def func(self) -> Callable[..., None]:
        """The function in the worker's table. Raises `ForbiddenFunction` for every other name, and for callbacks."""
        if callbacks := self._success_callback_name or self._failure_callback_name or self._stopped_callback_name:
            raise ForbiddenFunction(f"job {self.id} names the callback {callbacks!r}; none is ever called")
        name = self.func_name
        if self.instance is not None or not isinstance(name, str) or name not in self.functions:
            raise ForbiddenFunction(f"job {self.id} names {name!r}, which is not in this worker's table")
        return self.functions[name]

    @property
    def request_id(self) -> str:
        """The job's request. Raises `ForbiddenFunction` unless the id of a request is the job's only argument."""
        arguments = self.args
        if self.kwargs or not isinstance(arguments, list) or len(arguments) != 1 or not isinstance(arguments[0], str):
            raise ForbiddenFunction(f"job {self.id} has other arguments than one request's id")
        return arguments[0]

    @property
    def should_retry(self) -> bool:
        """False: requests count their own attempts, and a refused job is never retried."""
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


def job_class(functions: Mapping[str, Callable[..., None]]) -> type[TransportJob]:
    """A job class that can perform these functions and nothing else."""
    return type("WorkerJob", (TransportJob,), {"functions": functions})


def clean_registries(queue: Queue, now_s: float) -> None:
    """Run RQ's maintenance of the registries that our jobs are in, at `now_s` of Redis's clock.

    A started job whose worker has disappeared becomes a failed one. Its request is left to the reaper.
    """
    for registry in (queue.finished_job_registry, queue.started_job_registry, queue.failed_job_registry):
        registry.cleanup(now_s)


def queue(redis: Redis, tier: Tier, jobs: type[TransportJob] = TransportJob) -> Queue:
    """The queue of a tier."""
    return Queue(QUEUE_NAMES[tier], connection=redis, serializer=MsgpackSerializer, job_class=jobs)


def request_of(job_id: str, tier: Tier) -> str | None:
    """The id of the request whose job in the tier this is (`scripts` names jobs); None for any other job."""
    request_id, _, suffix = job_id.rpartition("-")
    return request_id if suffix == tier else None


def job_fields(request_id: str, tier: Tier) -> list[str | bytes]:
    """The fields of the hash that RQ would write for the request's job: names and values in turn."""
    packed = zlib.compress(MsgpackSerializer.dumps((FUNCTION_NAMES[tier], None, (request_id,), {})))
    return [*_always(tier, int(time.time())), "data", packed]


@functools.lru_cache(maxsize=4)
def _always(tier: Tier, second: int) -> list[str | bytes]:
    """The fields that all jobs of a tier created in the same second share."""
    del second
    job = TransportJob.create(
        FUNCTION_NAMES[tier],
        # RQ's default description contains the job's arguments.
        description=FUNCTION_NAMES[tier],
        connection=Redis(),  # required, but not used
        status=JobStatus.QUEUED,
        origin=QUEUE_NAMES[tier],
        failure_ttl=FAILURE_TTL_S,
        result_ttl=0,
        serializer=MsgpackSerializer,
    )
    job.enqueued_at = job.created_at
    fields = {**job.to_dict(include_meta=False), "status": JobStatus.QUEUED.value}
    del fields["data"]
    return [
        part for field, value in fields.items() for part in (field, value if isinstance(value, bytes) else str(value))
    ]
