"""Fixtures of tests on a real Redis server: stores, and whole processes of ours."""

from contextlib import ExitStack
from itertools import count
from pathlib import Path

import pytest
from redis import Redis

from broker import keys
from broker.records import Lifetimes, RequestStore
from tests.polling import until
from tests.processes import Process, running

LIFETIMES = Lifetimes(result_ttl_s=60, unfinished_ttl_s=600, lease_s=10.0, max_attempts=3)


@pytest.fixture
def store(redis_connection: Redis) -> RequestStore:
    return RequestStore(redis_connection, LIFETIMES)


@pytest.fixture
def make_due(redis_connection: Redis):
    """As if the time had come to look after the request: its lease has lapsed, or its next check is due."""

    def due(request_id: str) -> None:
        assert redis_connection.zadd(keys.leases(), {request_id: 1.0}, xx=True, ch=True) == 1

    return due


#: Settings of the worker processes: a short lease, so that a crash is noticed soon.
WORKER_LEASE_S = 2.0


@pytest.fixture
def worker_store(redis_connection: Redis) -> RequestStore:
    """A store with the lifetimes of the worker processes."""
    return RequestStore(redis_connection, Lifetimes(60, 600, WORKER_LEASE_S, 3))


@pytest.fixture
def start_worker(redis_url: str, tmp_path: Path):
    """Starts a worker around a stand-in engine, and waits until it is ready."""
    with ExitStack() as processes:
        numbers = count(1)

        def start(tier: str, *, delay_s: float = 0.005, capacity: int = 16) -> Process:
            process = processes.enter_context(
                running(
                    "tests.fakes.worker",
                    tier,
                    str(delay_s),
                    log=tmp_path / f"{tier}-{next(numbers)}.log",
                    REDIS_URL=redis_url,
                    FIRSTDRAFT_REQUESTS__LEASE_S=str(WORKER_LEASE_S),
                    FIRSTDRAFT_EDGE__MAX_IN_FLIGHT=str(capacity),
                    FIRSTDRAFT_CLOUD__MAX_IN_FLIGHT=str(capacity),
                )
            )
            until(lambda: process.said("worker_ready"), "the worker is ready", within_s=30)
            return process

        yield start
