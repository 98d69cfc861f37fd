"""The whole system as processes that can be killed, stopped and restarted one by one: Redis, a gateway, workers."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGCONT, SIGKILL, Signals
from types import MappingProxyType
from typing import Any, cast

import httpx
from redis import Redis
from redis.exceptions import RedisError

from broker import keys
from broker.connection import connect
from broker.event_streams import EventHub
from broker.leases import Lifetimes
from broker.request_store import RequestStore
from config.environment import child_environment
from config.settings import read_settings
from experiments.waiting import END_S, until
from firstdraft.local.embedded import server_command
from schemas.events import Event
from workers.runtime.process_tree import ending_with_parent

#: Seconds until a process that ended is started again, as systemd or Kubernetes would.
RESTART_S = 0.5
#: Seconds until everything must be ready; real engines take most of it.
READY_S = 180.0
#: Seconds between checks for processes that ended.
WATCH_S = 0.02
#: Seconds per token of a fake engine.
FAKE_TOKEN_S = 0.005


@dataclass(frozen=True)
class SelfSignal:
    """A fake worker sends itself the signal when it reaches the step for the `countdown`-th time."""

    step: str
    countdown: int
    signal: Signals = SIGKILL


@dataclass
class ManagedProcess:
    """A process that is restarted whenever it ends. `first_arguments` are added to its command at the first start."""

    name: str
    command: list[str]
    environment: dict[str, str]
    log: Path
    first_arguments: list[str] = field(default_factory=list)
    process: "subprocess.Popen[bytes] | None" = None
    #: When each of its processes died, in seconds since the epoch, by process id.
    deaths: dict[int, float] = field(default_factory=dict)

    def start(self) -> None:
        """Start it in a process group of its own. On Linux it is killed if this process dies."""
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(  # noqa: S603 - our own command
                [*self.command, *self.first_arguments],
                env=self.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=ending_with_parent(SIGKILL),  # noqa: PLW1509 - system calls and nothing else
            )
        self.first_arguments = []

    def send_signal(self, number: Signals) -> None:
        """Send the signal to the process and its children. Does nothing if it has ended."""
        if self.process is not None and self.process.poll() is None:
            if number == SIGKILL:
                self.deaths[self.process.pid] = time.time()
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)

    def restart_if_ended(self) -> None:
        """If it has ended, record its death, kill its remaining children and start it again."""
        if self.process is None or self.process.poll() is None:
            return
        self.deaths.setdefault(self.process.pid, time.time())
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, SIGKILL)
        time.sleep(RESTART_S)
        self.start()

    def read_log(self) -> str:
        """Everything it has printed, over all its starts."""
        return self.log.read_text(encoding="utf-8", errors="replace")


class System:
    """Redis, a gateway and workers, restarted by a thread when they end. Made by `running_system`.

    The server of `redis_url` is used if it is given; otherwise the system has a Redis process of its own.
    """

    def __init__(self, folder: Path, redis_url: str | None = None) -> None:
        self.folder = folder
        self._socket = folder / "redis.sock"
        self._own_redis = redis_url is None
        self.redis_url = redis_url or f"unix://{self._socket}"
        self._port = _free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self._self_signals = folder / "self_signals.jsonl"
        self.processes: dict[str, ManagedProcess] = {}
        self.redis: Redis = connect(self.redis_url)
        self.store = RequestStore(self.redis, Lifetimes.configured(read_settings().requests))
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def start(self, gateway_environment: Mapping[str, str]) -> None:
        """Start Redis and the gateway, and block until both answer."""
        if self._own_redis:
            self._add("redis", server_command(self.folder, self._socket), {})
        until(self._redis_answers, "Redis answers", READY_S)
        self._add("gateway", [sys.executable, "-m", "gateway"], gateway_environment)
        self._watcher.start()
        until(lambda: self.status("/healthz") == httpx.codes.OK, "the gateway answers", READY_S)

    def add_worker(self, name: str, tier: str, environment: Mapping[str, str] = MappingProxyType({})) -> None:
        """Start a worker on its real engine. Does not wait until it is ready."""
        self._add(name, [sys.executable, "-m", f"workers.{tier}"], environment)

    def add_fake_worker(
        self,
        name: str,
        tier: str,
        *,
        token_s: float = FAKE_TOKEN_S,
        self_signal: SelfSignal | None = None,
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Start a worker on a fake engine; only its first process sends itself the signal. Does not wait."""
        command = [sys.executable, "-m", "tests.fakes.worker", tier, str(token_s)]
        arguments = []
        if self_signal is not None:
            arguments = [
                self_signal.step,
                str(self_signal.countdown),
                str(self._self_signals),
                self_signal.signal.name,
            ]
        self._add(name, command, environment, arguments)

    def remove(self, name: str) -> None:
        """Kill the process for good."""
        with self._lock:
            removed = self.processes.pop(name)
            removed.send_signal(SIGCONT)
            removed.send_signal(SIGKILL)
        if removed.process is not None:
            removed.process.wait(END_S)

    def close(self) -> None:
        """Kill everything."""
        self._closing.set()
        if self._watcher.ident is not None:
            self._watcher.join(END_S)
        for name in list(self.processes):
            self.remove(name)
        self.redis.close()

    def workers(self) -> list[ManagedProcess]:
        """The processes that are workers."""
        return [process for name, process in self.processes.items() if name not in {"redis", "gateway"}]

    def wait_until_ready(self) -> None:
        """Block until every worker has logged that it is ready, and the gateway reports both tiers ready."""
        for worker in self.workers():
            until(lambda log=worker.read_log: "worker_ready" in log(), f"{worker.name} is ready", READY_S)  # type: ignore[misc]
        until(lambda: self.status("/readyz") == httpx.codes.OK, "the system is ready", READY_S)

    def status(self, path: str) -> int | None:
        """The status of the gateway's answer; None if it cannot be reached."""
        try:
            return httpx.get(self.url + path, trust_env=False, timeout=5).status_code
        except httpx.TransportError:
            return None

    def counter(self, name: str) -> int:
        """The deployment's counter of this name."""
        return int(cast("bytes | None", self.redis.hget(keys.counters(), name)) or 0)

    def events(self, request_id: str) -> list[tuple[float, Event]]:
        """The request's events, each with its time in seconds since the epoch by Redis's clock."""
        streamed = EventHub(self.redis).read(request_id)
        return [(int(each.position.split("-")[0]) / 1000, each.event) for each in streamed]

    def worker_deaths(self) -> dict[int, float]:
        """When workers died, in seconds since the epoch, by process id."""
        found = {pid: at_s for worker in self.workers() for pid, at_s in worker.deaths.items()}
        return found | {sent["pid"]: sent["at_s"] for sent in self.self_signals() if sent["by"] == SIGKILL.name}

    def self_signals(self) -> list[dict[str, Any]]:
        """The signals that fake workers have sent themselves: step, request_id, pid, at_s, by."""
        if not self._self_signals.exists():
            return []
        return [json.loads(line) for line in self._self_signals.read_text(encoding="utf-8").splitlines()]

    def _add(
        self, name: str, command: list[str], environment: Mapping[str, str], first_arguments: Sequence[str] = ()
    ) -> None:
        defaults = {
            "REDIS_URL": self.redis_url,
            "FIRSTDRAFT_GATEWAY__PORT": str(self._port),
            "XDG_STATE_HOME": str(self.folder),
        }
        variables = child_environment(**{**defaults, **environment})
        added = ManagedProcess(name, command, variables, self.folder / f"{name}.log", list(first_arguments))
        with self._lock:
            self.processes[name] = added
            added.start()

    def _redis_answers(self) -> bool:
        with suppress(RedisError):
            return bool(self.redis.ping())
        return False

    def _watch(self) -> None:
        while not self._closing.wait(WATCH_S):
            with self._lock:
                for process in list(self.processes.values()):
                    process.restart_if_ended()


@contextmanager
def running_system(
    gateway_environment: Mapping[str, str] = MappingProxyType({}), *, redis_url: str | None = None
) -> Iterator[System]:
    """Run Redis (unless `redis_url` is given) and a gateway in a temporary folder while the block runs."""
    with tempfile.TemporaryDirectory(prefix="firstdraft-bench-") as folder:
        system = System(Path(folder), redis_url)
        try:
            system.start(gateway_environment)
            yield system
        finally:
            system.close()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port
