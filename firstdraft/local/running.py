"""Runs the whole system on one machine: the embedded Redis server, the gateway, a worker of each tier."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import httpx
import psutil

from broker.tls import check_tls
from config.environment import child_environment
from config.settings import GatewaySettings, Settings, state_folder
from firstdraft.local.embedded import embedded_server
from firstdraft.local.model_store import prepare_configured_models
from firstdraft.local.supervisor import MODULES, Supervisor, read_procfile, server_environment, server_program
from gateway.http.listening import listen
from workers.runtime.process_tree import adopt_orphans

#: Seconds until every process must be ready. Engines take most of it; a compiled one takes minutes.
READY_S = 600.0
#: Seconds between polls of readiness.
POLL_S = 0.5
#: The niceness of the cloud worker beside an edge worker: while the edge computes, it gets about a tenth of the CPU.
SHARED_NICENESS = 10
#: Seconds that killing what is left after a stop may take.
SWEEP_S = 1.0


class SystemNotRunning(Exception):
    """The system did not start, or ended by itself; the message says what happened."""


@dataclass(frozen=True)
class RunningSystem:
    """A system whose every tier is ready."""

    base_url: str
    redis_url: str
    supervisor: Supervisor

    def wait(self) -> None:
        """Block until it ends by itself, which it should not. Raises `SystemNotRunning`."""
        while not self.supervisor.wait(timeout_s=60.0):
            pass
        raise SystemNotRunning(f"{self.supervisor.failure} and took the others with it")


@contextmanager
def running_system(
    settings: Settings, procfile: Path | None, say: Callable[[str], None], output: IO[bytes] | None = None
) -> Iterator[RunningSystem]:
    """Prepare models, start everything, wait until it is ready; stop everything when the block ends.

    `procfile` names other processes than the gateway and a worker of each tier. `say` gets a line for each step;
    `output` gets what the processes print (standard output if None). Raises `SystemNotRunning`,
    `EmbeddedServerError`, `ModelStoreError`, or `OSError` for the Procfile.
    """
    programs = [server_program(name, settings) for name in MODULES] if procfile is None else read_procfile(procfile)
    if not programs:
        raise SystemNotRunning(f"{procfile} names no process")
    _check_port_is_free(settings.gateway)
    check_tls(settings.redis)
    prepare_configured_models(settings, say)
    with ExitStack() as stack:
        if settings.redis.url is None:
            redis_url = stack.enter_context(embedded_server(state_folder() / "redis"))
            say(f"embedded Redis server at {redis_url}")
        else:
            redis_url = settings.redis.url.get_secret_value()
            say("using the Redis server that redis.url names")
        adopt_orphans()
        others = _descendants()
        environment = (server_environment if procfile is None else child_environment)(
            REDIS_URL=redis_url, PYTHONUNBUFFERED="1", **shared_machine(settings)
        )
        supervisor = Supervisor(programs, environment, output or sys.stdout.buffer)
        stack.callback(_stop, supervisor, others, say)
        supervisor.start()
        _wait_until_ready(settings.gateway.local_url, supervisor, say)
        yield RunningSystem(settings.gateway.local_url, redis_url, supervisor)


def shared_machine(settings: Settings) -> dict[str, str]:
    """The settings, as environment variables, that differ where both tiers run on one machine.

    Both tiers' threads wait for each other by spinning; as equals on the same cores, both starve. So the cloud yields
    while the edge computes: drafts are short, and the verifications that wait for them run in larger batches, which
    costs less (docs/log.md, "Both tiers on one machine").
    """
    return {} if settings.cloud.niceness else {"FIRSTDRAFT_CLOUD__NICENESS": str(SHARED_NICENESS)}


def _stop(supervisor: Supervisor, others: set[psutil.Process], say: Callable[[str], None]) -> None:
    """Stop all programs, then kill any process that they left behind. `others` are not theirs."""
    say("stopping")
    started = _descendants() - others
    supervisor.stop()
    deadline = time.monotonic() + SWEEP_S
    # Again, because a process may have started another since the last look.
    while (left := {process for process in started | _descendants() if _runs(process)} - others) and (
        time.monotonic() < deadline
    ):
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(list(left), timeout=SWEEP_S / 4)


def _descendants() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _check_port_is_free(gateway: GatewaySettings) -> None:
    """Raise `SystemNotRunning` if the gateway could not listen: whatever does would be taken for ours."""
    if gateway.port == 0:
        raise SystemNotRunning("gateway.port is 0, and nobody would know which port the gateway has: choose one")
    try:
        listen(gateway.host, gateway.port).close()
    except OSError as error:
        raise SystemNotRunning(
            f"the gateway cannot listen on {gateway.authority} ({error.strerror}): stop what does,"
            " or set FIRSTDRAFT_GATEWAY__PORT"
        ) from error


def _wait_until_ready(base_url: str, supervisor: Supervisor, say: Callable[[str], None]) -> None:
    deadline = time.monotonic() + READY_S
    missing = ""
    with httpx.Client(base_url=base_url, trust_env=False, timeout=5.0) as client:
        while time.monotonic() < deadline:
            now_missing = _missing(client)
            if not now_missing:
                say(f"ready at {base_url}")
                return
            if now_missing != missing:
                missing = now_missing
                say(f"waiting: {missing}")
            if supervisor.wait(POLL_S):
                raise SystemNotRunning(f"{supervisor.failure} before all were ready")
    raise SystemNotRunning(f"not ready after {READY_S:.0f} s: {missing}")


def _missing(client: httpx.Client) -> str:
    """What is not ready, in words; empty when everything is."""
    try:
        response = client.get("/readyz")
    except httpx.TransportError:
        return "the gateway does not answer yet"
    if response.status_code == httpx.codes.OK:
        return ""
    return ", ".join(response.json().get("missing", ["the gateway is not ready"]))
