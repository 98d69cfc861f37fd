"""Runs processes: restarts those that end badly, shows what they print, and stops them all together.

Every process runs under a small shell, in a session of its own, so that signals to our group (Ctrl-C) do not reach it.
If we are killed, the shell stops it, and kills what is left of the session after `KILL_S`. What is left of the session
when a process ends is killed as well: vLLM's processes would hold the next worker's memory.
"""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from threading import Event, Lock, Thread
from typing import IO

from config.environment import child_environment
from config.settings import Settings
from workers.runtime.process_tree import ending_with_parent

log = logging.getLogger(__name__)

#: The module of each of the server's processes.
MODULES = {"gateway": "gateway", "edge": "workers.edge", "cloud": "workers.cloud"}
#: Seconds before a restart: doubled after each short life, up to the second.
FIRST_DELAY_S, LAST_DELAY_S = 0.5, 30.0
#: A process that lived this long, in seconds, has shown that it can start.
LONG_LIFE_S = 60.0
#: Short lives in a row after which a process is given up.
MAX_SHORT_LIVES = 5
#: Seconds until a stop during the delay is noticed.
LOOK_S = 0.1
#: Seconds from a stop until what still runs is killed.
KILL_S = 5.0
#: Seconds that the last output of an ended process may take to be shown.
LAST_OUTPUT_S = 1.0
#: What a terminal shows names in: one colour after the other (ANSI: cyan, yellow, green, magenta).
COLOURS = (36, 33, 32, 35)
#: The shell around a command. It passes SIGTERM on: to the process alone, which ends its children in order, or to the
#: whole group (`$0`) of a Procfile's command, which may be a shell that passes nothing on. SIGHUP means that we died.
GUARD = f"""
stop() {{ trap '' TERM HUP; if [ "$0" = group ]; then kill -TERM 0; else kill -TERM $child; fi; }}
abandon() {{ stop; (sleep {KILL_S:.0f}; kill -KILL 0) & }}
early=:
trap early=stop TERM; trap early=abandon HUP
"$@" & child=$!
exec 2>/dev/null  # the shell would report how its child ended
trap stop TERM; trap abandon HUP
$early
wait $child; status=$?
while kill -0 $child 2>/dev/null; do wait $child; status=$?; done  # a signal has interrupted the wait
exit $status
"""


class EngineMissing(Exception):
    """A worker's engine is not installed; the message says what to install."""


@dataclass(frozen=True)
class Program:
    """What a process runs."""

    name: str
    command: list[str | bytes]
    #: Whether it is started again when it ends with another status than 0.
    restarts: bool = True
    #: Whether SIGTERM goes to all processes of its group.
    stops_group: bool = False


def server_program(name: str, settings: Settings) -> Program:
    """One of the server's processes: gateway, edge or cloud. Raises `EngineMissing`."""
    if name == "edge" and find_spec("llama_cpp") is None:
        raise EngineMissing("llama.cpp is not installed: pip install 'firstdraft[edge]'")
    if name == "cloud" and settings.cloud.engine == "vllm" and find_spec("vllm") is None:
        raise EngineMissing("vLLM is not installed: pip install 'firstdraft[cloud]' (GPU) or 'firstdraft[cloud-cpu]'")
    return Program(name, [sys.executable, "-m", MODULES[name]])


def server_environment(**changes: str) -> dict[str, str]:
    """The environment of the server's processes, with these changes."""
    # Packages in the current folder, which may be anybody's, must not be taken for ours.
    return child_environment(PYTHONSAFEPATH="1", **changes)


def read_procfile(path: Path) -> list[Program]:
    """The programs that a Procfile names. As honcho does, none of them is restarted. Raises `OSError`."""
    lines = (line.partition(":") for line in path.read_text(encoding="utf-8").splitlines())
    return [
        Program(name.strip(), ["/bin/sh", "-c", command.strip().encode()], restarts=False, stops_group=True)
        for name, colon, command in lines
        if colon and not name.lstrip().startswith("#")
    ]


class Output:
    """Lines of several processes in one stream, each after the time and its process's name. Bytes stay as they are."""

    def __init__(self, stream: IO[bytes], names: Sequence[str]) -> None:
        self._stream = stream
        self._lock = Lock()
        self._width = max(map(len, names))
        self._colours = dict(zip(names, COLOURS * len(names), strict=False)) if stream.isatty() else {}

    def copy(self, name: str, source: IO[bytes]) -> None:
        """Write every line of the source. Blocks until its end."""
        with source:
            for line in source:
                prefix = f"{time.strftime('%H:%M:%S')} {name:<{self._width}} | "
                if colour := self._colours.get(name):
                    prefix = f"\033[{colour}m{prefix}\033[0m"
                # Read on where nobody reads what we show: a process must not wait for that.
                with self._lock, contextlib.suppress(OSError, ValueError):
                    self._stream.write(prefix.encode() + line.rstrip(b"\n") + b"\n")
                    self._stream.flush()


class SupervisedProcess:
    """One program, kept running."""

    def __init__(
        self, program: Program, environment: Mapping[str, str] | None = None, output: Output | None = None
    ) -> None:
        self.program = program
        self._environment = environment
        self._output = output
        self._child: subprocess.Popen[bytes] | None = None
        self._stopping = False

    def run(self) -> int:
        """Run the program until it ends well, is stopped, or is given up. Blocks; returns the exit status.

        It ends with the thread that calls this.
        """
        short_lives = 0
        while True:
            began = time.monotonic()
            status = self._run_once()
            if self._stopping or status == 0:
                return 0
            if not self.program.restarts:
                return status
            short_lives = 0 if time.monotonic() - began > LONG_LIFE_S else short_lives + 1
            if short_lives >= MAX_SHORT_LIVES:
                log.error("worker_given_up process=%s status=%d", self.program.name, status)
                return status
            delay_s = min(FIRST_DELAY_S * 2 ** max(short_lives - 1, 0), LAST_DELAY_S)
            log.warning("worker_ended process=%s status=%d restart_in_s=%.1f", self.program.name, status, delay_s)
            self._pause(delay_s)
            if self._stopping:
                return 0

    def stop(self) -> None:
        """Send SIGTERM, and start nothing more. Does not wait. Safe in a signal handler."""
        self._stopping = True
        if self._child is not None:
            self._child.terminate()

    def kill(self) -> None:
        """Kill the process and all of its session."""
        if self._child is not None and self._child.poll() is None:
            _kill_session(self._child.pid)

    def _run_once(self) -> int:
        child = self._child = subprocess.Popen(  # noqa: S603 - our own command, or the Procfile's
            ["/bin/sh", "-c", GUARD, "group" if self.program.stops_group else "process", *self.program.command],
            env=self._environment,
            stdout=None if self._output is None else subprocess.PIPE,
            stderr=None if self._output is None else subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=ending_with_parent(signal.SIGHUP),  # noqa: PLW1509 - system calls and nothing else
        )
        if self._stopping:  # the stop came while it started, and missed it
            child.terminate()
        if self._output is not None:
            assert child.stdout is not None
            copying = Thread(target=self._output.copy, args=(self.program.name, child.stdout), daemon=True)
            copying.start()
        status = child.wait()
        _kill_session(child.pid)
        if self._output is not None:
            copying.join(LAST_OUTPUT_S)
        return status

    def _pause(self, delay_s: float) -> None:
        """Wait for the delay, or until stopped."""
        until = time.monotonic() + delay_s
        while not self._stopping and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, LOOK_S))


class Supervisor:
    """Several programs, each kept running; the end of one for good is the end of all."""

    def __init__(self, programs: Sequence[Program], environment: Mapping[str, str], output: IO[bytes]) -> None:
        shown = Output(output, [program.name for program in programs])
        self._processes = [SupervisedProcess(program, environment, shown) for program in programs]
        self._threads = [Thread(target=self._run, args=(process,), daemon=True) for process in self._processes]
        self._ended = Event()
        #: Which program ended for good, and how; None while all run.
        self.failure: str | None = None

    def start(self) -> None:
        """Start everything. Does not wait."""
        for thread in self._threads:
            thread.start()

    def wait(self, timeout_s: float) -> bool:
        """Wait until a program has ended for good; whether one has."""
        return self._ended.wait(timeout_s)

    def stop(self) -> None:
        """Stop everything; kill what has not ended after `KILL_S`. Blocks until then at most."""
        deadline = time.monotonic() + KILL_S
        for process in self._processes:
            process.stop()
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        for process in self._processes:
            process.kill()
        for thread in self._threads:
            thread.join(LAST_OUTPUT_S)

    def _run(self, process: SupervisedProcess) -> None:
        how = "could not be started"
        try:
            how = f"ended with status {process.run()}"
        finally:
            if not self._ended.is_set():
                self.failure = f"{process.program.name} {how}"
                self._ended.set()


def _kill_session(session: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # nothing is left of it
        os.killpg(session, signal.SIGKILL)
