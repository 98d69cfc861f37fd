"""Runs the whole system on one machine: the embedded server, and what the Procfile names, through honcho."""

import contextlib
import signal
import subprocess
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
from gateway.http.listening import listen
from workers.runtime.process_tree import adopt_orphans, ending_with_parent

#: Seconds until every process must be ready. Engines take most of it; a compiled one takes minutes.
READY_S = 600.0
#: Seconds between looks at readiness.
LOOK_S = 0.5
#: Seconds that stopping may take: honcho kills what is left after 5.
STOP_S = 7.0
#: How far the cloud's worker steps back for the edge's: about a tenth of the processors is left to it meanwhile.
SHARED_NICENESS = 10
#: Seconds that killing what is left after that may take.
SWEEP_S = 1.0


class SystemNotRunning(Exception):
    """The system did not start, or ended by itself; the message says what happened."""


@dataclass(frozen=True)
class RunningSystem:
    """A system whose every tier is ready."""

    base_url: str
    redis_url: str
    honcho: "subprocess.Popen[bytes]"

    def wait(self) -> None:
        """Block until it ends by itself, which it should not. Raises `SystemNotRunning`."""
        self.honcho.wait()
        raise SystemNotRunning(f"a process ended and took the others with it (status {self.honcho.returncode})")


@contextmanager
def running_system(
    settings: Settings, procfile: Path, say: Callable[[str], None], output: IO[bytes] | None = None
) -> Iterator[RunningSystem]:
    """Prepare models, start everything, wait until it is ready; stop everything when the block ends.

    `say` is told of each step; `output` gets what the processes print (standard output if None). Raises
    `SystemNotRunning`, `EmbeddedServerError` or `ModelStoreError`.
    """
    if not procfile.is_file():
        raise SystemNotRunning(f"there is no {procfile}: run from the project's folder, or give --procfile")
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
        honcho = _start(procfile, child_environment(REDIS_URL=redis_url, **shared_machine(settings)), output)
        stack.callback(_stop, honcho, others)
        system = RunningSystem(settings.gateway.local_url, redis_url, honcho)
        _wait_until_ready(system, say)
        yield system


def shared_machine(settings: Settings) -> dict[str, str]:
    """What of the settings is otherwise, as environment, where both tiers run on one machine.

    Both tiers' threads wait for each other by spinning, and where they share cores as equals both starve. So the cloud
    steps back while the edge computes: drafts are short, and verifications that wait for them run in larger batches,
    which costs less (docs/log.md, "Both tiers on one machine").
    """
    return {} if settings.cloud.niceness else {"FIRSTDRAFT_CLOUD__NICENESS": str(SHARED_NICENESS)}


def _start(procfile: Path, environment: dict[str, str], output: IO[bytes] | None) -> "subprocess.Popen[bytes]":
    # honcho itself in UTF-8: it would end, and all others with it, where one prints what the locale lacks.
    command = [sys.executable, "-X", "utf8", "-m", "honcho", "start", "-f", str(procfile)]
    # A session of its own, so that Ctrl-C reaches this process alone, which then stops the others in order.
    return subprocess.Popen(  # noqa: S603 - our own command
        command,
        env={**environment, "PYTHONUNBUFFERED": "1"},
        stdout=output,
        stderr=subprocess.STDOUT if output else None,
        start_new_session=True,
        # Where this process is killed, honcho stops what it runs as it does on SIGTERM.
        preexec_fn=ending_with_parent(signal.SIGTERM),  # noqa: PLW1509 - system calls and nothing else
    )


def _stop(honcho: "subprocess.Popen[bytes]", others: set[psutil.Process]) -> None:
    """Stop honcho and what it started, then kill whatever any of those left behind. `others` are not its own."""
    started = _descendants() - others
    honcho.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        honcho.wait(STOP_S)
    deadline = time.monotonic() + SWEEP_S
    # Again, because a process may have started another since the look before.
    while (left := {one for one in started | _descendants() if _runs(one)} - others) and time.monotonic() < deadline:
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs([process for process in left if process.pid != honcho.pid], timeout=SWEEP_S / 4)
        honcho.poll()


def _descendants() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _check_port_is_free(gateway: GatewaySettings) -> None:
    """Raise `SystemNotRunning` where the gateway could not listen: another one there would be taken for ours."""
    if gateway.port == 0:
        raise SystemNotRunning("gateway.port is 0, and nobody would know which port the gateway has: choose one")
    try:
        listen(gateway.host, gateway.port).close()
    except OSError as error:
        raise SystemNotRunning(
            f"the gateway cannot listen on {gateway.authority} ({error.strerror}): stop what does,"
            " or set FIRSTDRAFT_GATEWAY__PORT"
        ) from error


def _wait_until_ready(system: RunningSystem, say: Callable[[str], None]) -> None:
    deadline = time.monotonic() + READY_S
    missing = ""
    with httpx.Client(base_url=system.base_url, trust_env=False, timeout=5.0) as client:
        while time.monotonic() < deadline:
            if system.honcho.poll() is not None:
                raise SystemNotRunning(f"a process ended before all were ready (status {system.honcho.returncode})")
            now_missing = _missing(client)
            if not now_missing:
                say(f"ready at {system.base_url}")
                return
            if now_missing != missing:
                missing = now_missing
                say(f"waiting: {missing}")
            time.sleep(LOOK_S)
    raise SystemNotRunning(f"not ready after {READY_S:.0f} s: {missing}")


def _missing(client: httpx.Client) -> str:
    """What is not ready, in words; empty when everything is."""
    try:
        answer = client.get("/readyz")
    except httpx.TransportError:
        return "the gateway does not answer yet"
    if answer.status_code == httpx.codes.OK:
        return ""
    return ", ".join(answer.json().get("missing", ["the gateway is not ready"]))
