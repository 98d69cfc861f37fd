"""The whole system as processes that can be killed, stopped, cut off and started again, each by itself."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from redis import Redis

from broker.connection import connect
from config.environment import child_environment
from experiments.waiting import END_S, until
from firstdraft.local.embedded import server_command

#: Seconds until a process that ended is started again, as systemd or Kubernetes would.
RESTART_S = 0.5
#: Seconds until everything must be ready; real engines take most of it.
READY_S = 180.0
#: Seconds between looks.
LOOK_S = 0.02


@dataclass(frozen=True)
class Fate:
    """A worker sends itself the signal when it comes to the step for the `countdown`-th time."""

    step: str
    countdown: int
    by: signal.Signals = signal.SIGKILL


@dataclass
class Member:
    """One process that is to run. Killed, it comes back; `fate` is what its first life is given beside its command."""

    name: str
    command: list[str]
    environment: dict[str, str]
    log: Path
    fate: list[str] = field(default_factory=list)
    comes_back: bool = True
    process: "subprocess.Popen[bytes] | None" = None
    #: Times of its deaths, in seconds since the epoch, by process id.
    deaths: dict[int, float] = field(default_factory=dict)

    def start(self) -> None:
        """Start it, in a group of its own."""
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(  # noqa: S603 - our own command
                [*self.command, *self.fate],
                env=self.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.fate = []

    def signal(self, number: signal.Signals) -> None:
        """Send the signal to the process and whatever it started."""
        if self.process is not None and self.process.poll() is None:
            if number == signal.SIGKILL:
                self.deaths[self.process.pid] = time.time()
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)

    def look(self) -> None:
        """Note that it has died, and start it again if it is to come back."""
        if self.process is None or self.process.poll() is None:
            return
        self.deaths.setdefault(self.process.pid, time.time())
        with suppress(ProcessLookupError):  # what an engine left behind
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process = None
        if self.comes_back:
            time.sleep(RESTART_S)
            self.start()


class System:
    """Redis, a gateway and workers. `watch` must be called all the time: it brings back what died."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "redis.sock"
        self.redis_url = f"unix://{self.socket}"
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.book = folder / "deaths.jsonl"
        self.members: dict[str, Member] = {}
        self.redis: Redis = connect(self.redis_url)
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def add(self, name: str, command: list[str], fate: list[str] | None = None, **environment: str) -> Member:
        """Start one more process."""
        ours = {"REDIS_URL": self.redis_url, "FIRSTDRAFT_GATEWAY__PORT": str(self.port)}
        whole = child_environment(**ours | environment)
        whole["XDG_STATE_HOME"] = str(self.folder)
        member = Member(name, command, whole, self.folder / f"{name}.log", fate or [])
        with self._lock:
            self.members[name] = member
            member.start()
        return member

    def remove(self, name: str) -> None:
        """Kill it for good."""
        with self._lock:
            member = self.members.pop(name)
            member.signal(signal.SIGCONT)
            member.signal(signal.SIGKILL)
        if member.process is not None:
            member.process.wait(END_S)

    def start(self, **gateway: str) -> None:
        """Start Redis and the gateway, with this in its environment, and wait until they answer."""
        self.add("redis", server_command(self.folder, self.socket))
        until(self._redis_answers, "redis answers", READY_S)
        self.add("gateway", [sys.executable, "-m", "gateway"], None, **gateway)
        self._watcher.start()
        until(lambda: self.status("/healthz") == httpx.codes.OK, "the gateway answers", READY_S)

    def close(self) -> None:
        """Kill everything."""
        self._ended.set()
        self._watcher.join(END_S)
        for name in list(self.members):
            self.remove(name)
        self.redis.close()

    def workers(self, prefix: str = "") -> list[Member]:
        """The members that are workers."""
        return [
            one for name, one in self.members.items() if name not in {"redis", "gateway"} and name.startswith(prefix)
        ]

    def add_worker(self, name: str, tier: str, *, fate: Fate | None = None, **environment: str) -> Member:
        """Start a worker around a stand-in engine; `fate` is what happens to it in its first life."""
        command = [sys.executable, "-m", "tests.fakes.worker", tier, "0.005"]
        given = [] if fate is None else [fate.step, str(fate.countdown), str(self.book), fate.by.name]
        return self.add(name, command, given, **environment)

    def wait_until_ready(self) -> None:
        """Block until every worker has said that it is ready, and the gateway knows of both tiers."""
        for member in self.workers():
            until(partial(_says_ready, member), f"{member.name} is ready", READY_S)
        until(lambda: self.status("/readyz") == httpx.codes.OK, "the system is ready", READY_S)

    def status(self, path: str) -> int | None:
        """What the gateway answers, or None."""
        try:
            return httpx.get(self.url + path, trust_env=False, timeout=5).status_code
        except httpx.TransportError:
            return None

    def deaths(self) -> dict[int, float]:
        """Times of all deaths of workers, by process id."""
        found = {pid: at for member in self.workers() for pid, at in member.deaths.items()}
        return found | {told["pid"]: told["at_s"] for told in self.fates() if told["by"] == signal.SIGKILL.name}

    def fates(self) -> list[dict[str, Any]]:
        """What workers wrote down before they killed or stopped themselves: step, request_id, pid, at_s, by."""
        lines = self.book.read_text(encoding="utf-8").splitlines() if self.book.exists() else []
        return [json.loads(line) for line in lines]

    def _redis_answers(self) -> bool:
        with suppress(Exception):
            return bool(self.redis.ping())
        return False

    def _watch(self) -> None:
        while not self._ended.wait(LOOK_S):
            with self._lock:
                for member in list(self.members.values()):
                    member.look()


class Cable:
    """A TCP road to the server's socket that can be cut: connections end, and new ones are refused."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.is_cut = False
        self._sockets: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Cut it."""
        self.is_cut = True
        for one in list(self._sockets):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        """Mend it."""
        self.is_cut = False

    def close(self) -> None:
        """Cut it for good."""
        self.cut()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self.is_cut:
                near.close()
                continue
            far = socket.socket(socket.AF_UNIX)
            try:
                far.connect(str(self._target))
            except OSError:
                near.close()
                continue
            for source, sink in ((near, far), (far, near)):
                self._sockets.add(source)
                threading.Thread(target=self._carry, args=(source, sink), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
        for one in (source, sink):
            self._sockets.discard(one)
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


@contextmanager
def running(folder: Path, **gateway: str) -> Iterator[System]:
    """The system while the block runs; `gateway` is what the gateway's environment has beside ours."""
    system = System(folder)
    try:
        system.start(**gateway)
        yield system
    finally:
        system.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _says_ready(member: Member) -> bool:
    return "worker_ready" in member.log.read_text(encoding="utf-8")
