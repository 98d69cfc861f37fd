"""Fixtures of tests on a real Redis server: stores, and whole processes of ours."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import httpx
import pytest
from redis import Redis

from broker import keys
from broker.api_keys import ApiKeys
from broker.batches import BatchStore
from broker.calibrations import CalibrationStore
from broker.event_streams import EventHub
from broker.idempotency import IdempotencyKeys
from broker.leases import Lifetimes
from broker.presence import Presence
from broker.request_store import RequestStore
from broker.router import Router
from broker.states import FINISHED
from config.settings import Settings
from firstdraft.local.embedded import embedded_server
from gateway.batches.files import DiskFiles
from gateway.jobs.request_validation import Admission
from gateway.services import Services
from schemas.owners import Owner, Scope
from schemas.routing_decision import RoutingPolicy
from tests.polling import until
from tests.processes import Process, free_port, running

LIFETIMES = Lifetimes(result_ttl_s=60, lease_s=10.0, max_attempts=3)


@pytest.fixture
def store(redis_connection: Redis) -> RequestStore:
    return RequestStore(redis_connection, LIFETIMES)


@pytest.fixture
def expire(store: RequestStore):
    """Acts on what is due, as every process does from time to time; gives the ids that wait again."""
    return store.expire


@pytest.fixture
def make_due(redis_connection: Redis):
    """As if the time had come to look after the request: its lease has lapsed, or its deadline has passed."""

    def due(request_id: str) -> None:
        assert redis_connection.zadd(keys.due(), {request_id: 1.0}, xx=True, ch=True) == 1

    return due


@pytest.fixture
def make_services(settings: Settings, redis_connection: Redis, store: RequestStore, tmp_path: Path):
    """What a gateway's routes work with, at twelve and a half seconds past the epoch. `gateway` are its settings."""

    def make(store: RequestStore = store, backpressure: dict[str, int] | None = None, **gateway: object) -> Services:
        presence = Presence(redis_connection, 30.0)
        return Services(
            settings=settings.gateway.model_copy(update=gateway),
            backpressure=settings.backpressure.model_copy(update=backpressure or {}),
            admission=Admission(settings),
            all_requests=store,
            hub=EventHub(redis_connection),  # not started: readers poll
            presence=presence,
            router=Router(store, presence, None, block_bytes=64, policy=RoutingPolicy.PREFIX, max_waiting=8),
            api_keys=ApiKeys(redis_connection),
            batches=BatchStore(redis_connection),
            calibrations=CalibrationStore(redis_connection),
            files=DiskFiles(tmp_path / "files", lambda: 12.5),
            idempotency_keys=IdempotencyKeys(redis_connection),
            clock=lambda: 12.5,
        )

    return make


@pytest.fixture
def api_keys(redis_connection) -> ApiKeys:
    return ApiKeys(redis_connection)


@pytest.fixture
def headers(api_keys):
    """Headers with a new key of the owner."""

    def make(owner: str, *scopes: Scope, **fields: object) -> dict[str, str]:
        chosen = scopes or (Scope.SUBMIT, Scope.READ)
        return {"Authorization": f"Bearer {api_keys.create(Owner(name=owner, scopes=chosen, **fields))}"}

    return make


#: Settings of the worker processes: a short lease, so that a crash is noticed soon.
WORKER_LEASE_S = 2.0


@pytest.fixture
def worker_store(redis_connection: Redis) -> RequestStore:
    """A store with the lifetimes of the worker processes."""
    return RequestStore(redis_connection, Lifetimes(60, WORKER_LEASE_S, 3))


@pytest.fixture
def ended(worker_store):
    """Waits until the request has ended, and gives its record."""

    def wait(request_id, within_s=20.0):
        until(lambda: worker_store.state(request_id) in FINISHED, f"{request_id} ends", within_s=within_s)
        return worker_store.read(request_id)

    return wait


@pytest.fixture
def start_worker(redis_url: str, redis_connection: Redis, tmp_path: Path):  # noqa: ARG001 - flushed before each test
    """Starts a worker around a stand-in engine, and waits until it is ready."""
    with ExitStack() as processes:
        numbers = count(1)

        def start(tier: str, *, delay_s: float = 0.005, capacity: int = 16, **environment: str) -> Process:
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
                    **environment,
                )
            )
            until(lambda: process.said("worker_ready"), "the worker is ready", within_s=30)
            return process

        yield start


@dataclass(frozen=True)
class RunningSystem:
    """A gateway and a worker of each tier around stand-in engines, on a Redis server of their own."""

    url: str
    redis_url: str
    gateway: Process


@pytest.fixture(scope="session")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSystem]:
    folder = tmp_path_factory.mktemp("system")
    port = str(free_port())
    with ExitStack() as stack:
        redis_url = stack.enter_context(embedded_server(folder / "redis"))
        environment = {
            "REDIS_URL": redis_url,
            "FIRSTDRAFT_GATEWAY__PORT": port,
            "XDG_STATE_HOME": str(folder / "state"),
        }
        workers = [
            stack.enter_context(running("tests.fakes.worker", tier, "0.002", log=folder / f"{tier}.log", **environment))
            for tier in ("edge", "cloud")
        ]
        gateway = stack.enter_context(running("gateway", log=folder / "gateway.log", **environment))
        url = f"http://127.0.0.1:{port}"
        for worker in workers:
            until(lambda worker=worker: worker.said("worker_ready"), "the worker is ready", within_s=30)
        until(lambda: _answers(url), "the gateway answers", within_s=30)
        yield RunningSystem(url, redis_url, gateway)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False
