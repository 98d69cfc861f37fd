"""What the queue itself costs: milliseconds per job of RQ's own workers and of ours, on one Redis, in turn.

Every side drains the same number of waiting jobs that do nothing; ours does so with 16 in flight and with all that a
request needs (record, lease, events, fenced commit). One process drains; this one only waits.
Then the latency that a request gets on top of its engine's: one after the other, from the client through the gateway
and an edge worker whose engine answers at once, and back. At last, how many commands Redis executes for a request and
for idle processes, how many round trips a submission takes, and how soon lapsed leases and passed deadlines are acted
on while 20,000 requests wait.

    python -m experiments.bench_queue
"""

import math
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from concurrent.futures import Future
from functools import partial
from pathlib import Path

from redis import Redis
from rq import Queue

from broker import keys
from broker.connection import connect
from broker.leases import LeasedRequest, Lifetimes
from broker.reaper import LOOK_S, Reaper
from broker.request_store import RequestStore
from broker.rq_transport import FUNCTION_NAMES, MsgpackSerializer
from config.environment import child_environment
from experiments.harness.report import print_document, print_table
from experiments.redis_commands import measure
from experiments.waiting import end, until
from firstdraft.client.retries import RetryRule
from firstdraft.client.statistics import percentile
from firstdraft.client.sync import Client
from firstdraft.local.embedded import embedded_server
from schemas.policy import Policy, Tier
from schemas.requests import AcceptanceRule, AcceptedRequest, ConfidenceRule, Message, Sampling
from schemas.results import FinishReason, Models, Result, Usage
from workers.runtime.in_flight import InFlight
from workers.runtime.job import Commit, JobRunner
from workers.runtime.rq_worker import Hooks, RQWorker

#: Jobs that each side drains in each round, and rounds.
NUM_JOBS, NUM_ROUNDS = 300, 3
#: Requests whose latency is measured, one after the other, and untimed ones before.
NUM_REQUESTS, NUM_WARM_UP = 300, 30
#: Seconds that starting a worker, and draining its jobs, may take.
DRAIN_S = 120.0
#: Requests that wait while it is measured how soon lapsed leases and passed deadlines, so many of each, are acted on.
NUM_WAITING, NUM_LAPSED, NUM_LATE = 20_000, 100, 1000
#: Jobs in flight in our worker.
IN_FLIGHT = 16
#: The sides, in the order in which they take turns.
SIDES = ("rq_simple_worker", "rq_worker", "ours_whole")
LIFETIMES = Lifetimes(result_ttl_s=600, lease_s=10.0, max_attempts=3)
POLICY = Policy(name="edge_only", tiers=(Tier.EDGE,), confidence_decides=False, verify_draft=False, kv_caches=True)


def nothing(*_arguments: object) -> None:
    """The job of every side."""


def main() -> None:
    """Run all sides in turn, print a table and one JSON document."""
    took: dict[str, list[float]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as folder, embedded_server(Path(folder)) as url:
        redis = connect(url)
        for _ in range(NUM_ROUNDS):
            for side in SIDES:
                redis.flushall()
                _fill(redis, side)
                took[side].append(_drain(redis, url, side) / NUM_JOBS * 1000)
        redis.close()
        _flush(url)
        latencies = _added_latencies(url)
        _flush(url)
        commands = measure(url)
        _flush(url)
        due_s = _seconds_until_due_is_acted_on(url)
    medians = {side: statistics.median(values) for side, values in took.items()}
    print_table(
        ["side", "ms a job (median)", "jobs/s"],
        [(side, f"{ms:.2f}", f"{1000 / ms:.0f}") for side, ms in medians.items()],
    )
    added_ms = {f"added_p{share}_ms": percentile(latencies, share / 100) or 0.0 for share in (50, 99)}
    figures = added_ms | commands | {"due_acted_on_s": due_s}
    print_table(["figure", "value"], [(name, f"{value:.2f}") for name, value in figures.items()])
    print_document(
        "queue",
        {
            **{f"{side}_ms": ms for side, ms in medians.items()},
            "vs_simple_worker": medians["rq_simple_worker"] / medians["ours_whole"],
            "vs_fork_worker": medians["rq_worker"] / medians["ours_whole"],
            "jobs_per_s": 1000 / medians["ours_whole"],
            **figures,
        },
        jobs=NUM_JOBS,
    )


def _flush(url: str) -> None:
    redis = connect(url)
    redis.flushall()
    redis.close()


def _fill(redis: Redis, side: str) -> None:
    if side.startswith("rq_"):
        queue = Queue("plain", connection=redis, serializer=MsgpackSerializer)
        for _ in range(NUM_JOBS):
            queue.enqueue_call("experiments.bench_queue.nothing", args=(uuid.uuid4().hex,), result_ttl=0)
    else:
        store = RequestStore(redis, LIFETIMES)
        for _ in range(NUM_JOBS):
            store.create(_request())


def _request() -> AcceptedRequest:
    return AcceptedRequest(
        request_id=uuid.uuid4().hex,
        messages=(Message(role="user", content="What is the capital of France?"),),
        sampling=Sampling(),
        policy=POLICY,
        confidence=ConfidenceRule(),
        acceptance=AcceptanceRule(),
        accepted_at_s=time.time(),
        deadline_s=600.0,
    )


def _drain(redis: Redis, url: str, side: str) -> float:
    """Seconds from the first job taken off the queue to the last one closed."""
    key = "rq:queue:plain" if side.startswith("rq_") else "rq:queue:edge"
    command = [sys.executable, "-m", "experiments.bench_queue", side, url]
    worker = subprocess.Popen(command, env=child_environment())  # noqa: S603 - this module
    try:
        until(lambda: redis.llen(key) < NUM_JOBS, f"{side} takes up its first job", DRAIN_S, look_s=0.001)
        began = time.perf_counter()
        until(
            lambda: worker.poll() is not None or not _unfinished(redis, key),
            f"{side} has done its jobs",
            DRAIN_S,
            look_s=0.002,
        )
        return time.perf_counter() - began
    finally:
        end(worker)  # RQ's have ended by themselves


def _added_latencies(url: str) -> list[float]:
    """Milliseconds of each request whose engine takes none, in ascending order."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    environment = child_environment(REDIS_URL=url, FIRSTDRAFT_GATEWAY__PORT=str(port), FIRSTDRAFT_LOG_LEVEL="WARNING")
    commands = ([sys.executable, "-m", "gateway"], [sys.executable, "-m", "experiments.bench_queue", "ours_whole", url])
    processes = [subprocess.Popen(command, env=environment) for command in commands]  # noqa: S603 - our own
    try:
        with Client(f"http://127.0.0.1:{port}", retries=RetryRule(max_retries=30)) as client:
            for _ in range(NUM_WARM_UP):
                client.infer("What is the capital of France?", policy="edge_only", timeout_s=60)
            latencies = [
                client.infer("What is the capital of France?", policy="edge_only", timeout_s=60).latency_ms
                for _ in range(NUM_REQUESTS)
            ]
    finally:
        for process in processes:
            end(process)
    return sorted(latencies)


def _seconds_until_due_is_acted_on(url: str) -> float:
    """With many requests waiting, from when leases lapse and deadlines pass until one process has acted on all."""
    redis = connect(url)
    store = RequestStore(redis, LIFETIMES)
    ids = [store.create(_request()) for _ in range(NUM_WAITING)]
    lapsed = [leased.lease.request_id for leased in store.take(Tier.EDGE, "bench@1", room=NUM_LAPSED).requests]
    reaper = Reaper(store)
    reaper.loop.start()
    time.sleep(LOOK_S / 2)  # between two of its looks
    late = ids[-NUM_LATE:]
    with redis.pipeline() as pipeline:
        for request_id in late:
            pipeline.hset(keys.request(request_id), "deadline_at", 1)
        pipeline.zadd(keys.due(), dict.fromkeys([*lapsed, *late], 1.0))
        pipeline.execute()
    began = time.perf_counter()
    until(lambda: not redis.zcount(keys.due(), 0, 1), "all that is due is acted on", DRAIN_S, look_s=0.01)
    seconds = time.perf_counter() - began
    reaper.loop.close()
    redis.close()
    return seconds


def _unfinished(redis: Redis, queue_key: str) -> bool:
    name = queue_key.removeprefix("rq:queue:")
    return bool(redis.llen(queue_key) or redis.zcard(f"rq:wip:{name}") or redis.llen(f"{queue_key}:intermediate"))


class ReadyWork:
    """Work whose engine has the answer at once."""

    def __init__(self, store: RequestStore, in_flight: InFlight) -> None:
        self._store, self._in_flight = store, in_flight

    def submit(self, taken: LeasedRequest) -> "Future[str]":
        """See `workers.runtime.job.Work`."""
        del taken
        done: Future[str] = Future()
        done.set_result("Paris")
        return done

    def conclude(self, taken: LeasedRequest, product: str, took_s: float) -> Commit:
        """See `workers.runtime.job.Work`."""
        del took_s
        result = Result(
            text=product,
            finish_reason=FinishReason.STOP,
            tier=Tier.EDGE,
            policy="edge_only",
            usage=Usage(),
            models=Models(),
        )
        return partial(self._store.succeed, taken.lease, result, self._in_flight.unpublished(taken.lease))

    def publish(self, taken: LeasedRequest, product: str) -> None:
        """See `workers.runtime.job.Work`."""


def _work(side: str, url: str) -> None:
    """The worker of one side, until it is stopped."""
    redis = connect(url)
    if side.startswith("rq_"):
        from rq import SimpleWorker, Worker  # noqa: PLC0415 - their import is not measured on our side

        kind = SimpleWorker if side == "rq_simple_worker" else Worker
        queue = Queue("plain", connection=redis, serializer=MsgpackSerializer)
        kind([queue], connection=redis, serializer=MsgpackSerializer).work(burst=True, logging_level="WARNING")
        return
    store = RequestStore(redis, LIFETIMES)
    in_flight = InFlight(store, nothing, LIFETIMES.lease_s, progress=lambda _: 0, stall_s=math.inf, hung=lambda: None)
    in_flight.start()
    jobs = JobRunner(Tier.EDGE, store, in_flight, ReadyWork(store, in_flight))
    RQWorker(
        redis,
        Tier.EDGE,
        "bench",
        capacity=IN_FLIGHT,
        functions={FUNCTION_NAMES[Tier.EDGE]: jobs.run_job},
        store=store,
        hooks=Hooks(healthy=lambda: True, drain=lambda: None),
    ).work(logging_level="WARNING")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        _work(*sys.argv[1:])
    else:
        main()
