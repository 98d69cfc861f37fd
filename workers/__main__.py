"""Keeps one worker process running: `python -m workers edge|cloud`.

honcho starts what a Procfile names and never restarts it; where systemd or Kubernetes does, run
`python -m workers.edge` itself. A worker that ends by itself is started again, sooner after a long life than after a
short one; one that cannot start (bad settings, a missing model) is tried a few times and then given up.
"""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from types import FrameType

from config.logs import configure_logs
from config.settings import InvalidSettings, read_settings
from workers.runtime.process_tree import ending_with_parent

log = logging.getLogger("workers")

TIERS = ("edge", "cloud")
#: Seconds before a restart: doubled after each short life, up to the second.
FIRST_DELAY_S, LAST_DELAY_S = 0.5, 30.0
#: A worker that lived this long, in seconds, has shown that it can start.
LONG_LIFE_S = 60.0
#: Short lives in a row after which the worker is given up.
MAX_SHORT_LIVES = 5
#: Seconds until a stop during the delay is noticed.
LOOK_S = 0.1


class Restarter:
    """Runs the command until it ends well, is told to stop, or cannot start."""

    def __init__(self, command: list[str]) -> None:
        self._command = command
        self._child: subprocess.Popen[bytes] | None = None
        self._stopping = False

    def stop(self, signum: int, frame: FrameType | None) -> None:  # noqa: ARG002 - a signal handler
        """Pass SIGTERM on and start nothing more."""
        self._stopping = True
        if self._child is not None:
            self._child.terminate()

    def run(self) -> int:
        """Block until there is nothing left to run. Answers the exit status."""
        short_lives = 0
        while True:
            began = time.monotonic()
            # A session of its own: a signal to this group must not reach the engine's processes before the worker
            # has handed back what it holds.
            self._child = subprocess.Popen(  # noqa: S603 - our own command
                self._command,
                start_new_session=True,
                preexec_fn=ending_with_parent(signal.SIGKILL),  # noqa: PLW1509 - system calls and nothing else
            )
            if self._stopping:  # the stop came while it started, and missed it
                self._child.terminate()
            status = self._child.wait()
            self._sweep(self._child.pid)
            if self._stopping or status == 0:
                return 0
            short_lives = 0 if time.monotonic() - began > LONG_LIFE_S else short_lives + 1
            if short_lives >= MAX_SHORT_LIVES:
                log.error("worker_given_up command=%s status=%d", self._command[-1], status)
                return 1
            delay = min(FIRST_DELAY_S * 2 ** max(short_lives - 1, 0), LAST_DELAY_S)
            log.warning("worker_ended command=%s status=%d restart_in_s=%.1f", self._command[-1], status, delay)
            self._pause(delay)
            if self._stopping:
                return 0

    def _pause(self, delay_s: float) -> None:
        """Wait for the delay, or until told to stop."""
        until = time.monotonic() + delay_s
        while not self._stopping and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, LOOK_S))

    @staticmethod
    def _sweep(session: int) -> None:
        """End what a killed worker left in its session: vLLM's processes would hold the memory of the next."""
        with contextlib.suppress(ProcessLookupError):  # nothing was left
            os.killpg(session, signal.SIGKILL)


def main() -> int:
    """Run the tier that the command line names."""
    if len(sys.argv) != 2 or sys.argv[1] not in TIERS:
        sys.exit(f"usage: python -m workers {'|'.join(TIERS)}")
    try:
        configure_logs(read_settings().log_level)
    except InvalidSettings as problem:
        sys.exit(f"{sys.argv[1]}: {problem}")
    restarter = Restarter([sys.executable, "-m", f"workers.{sys.argv[1]}"])
    signal.signal(signal.SIGTERM, restarter.stop)
    signal.signal(signal.SIGINT, restarter.stop)
    return restarter.run()


if __name__ == "__main__":
    sys.exit(main())
