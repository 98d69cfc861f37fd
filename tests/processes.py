"""Processes of ours as tests run them: started, watched, signalled, and never left behind."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
#: Seconds that the system may take to end a process that was killed.
KILLED_S = 10.0


class Process:
    """One process, in a group of its own, with everything that it says in a file."""

    def __init__(
        self, module: str, *arguments: str, log: Path, environment: dict[str, str], inside: Sequence[str] = ()
    ) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.upper().startswith("FIRSTDRAFT_")}
        self.log = log
        with log.open("ab") as output:
            self._popen = subprocess.Popen(
                [*inside, sys.executable, "-m", module, *arguments],
                cwd=ROOT,
                env={**kept, **environment},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    def said(self, words: str) -> bool:
        """Whether it has said the words."""
        assert self._popen.poll() in {None, 0} or words in self.log.read_text(), self.log.read_text()
        return words in self.log.read_text()

    def signal(self, number: signal.Signals) -> None:
        """Send the signal to the process alone."""
        self._popen.send_signal(number)

    def has_ended(self) -> bool:
        """Whether it runs no more."""
        return self._popen.poll() is not None

    def wait(self, within_s: float) -> int:
        """Its exit status. Raises `TimeoutExpired`."""
        return self._popen.wait(within_s)

    def end(self) -> None:
        """Kill it and whatever it started."""
        if self._popen.poll() is None:
            os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.wait(KILLED_S)


@contextmanager
def running(
    module: str, *arguments: str, log: Path, inside: Sequence[str] = (), **environment: str
) -> Iterator[Process]:
    """The process while the block runs. `inside`: what goes before its command."""
    process = Process(module, *arguments, log=log, environment=environment, inside=inside)
    try:
        yield process
    finally:
        process.end()


def free_port() -> int:
    """A TCP port of the loopback that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
