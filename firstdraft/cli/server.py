"""What the commands share that run, prepare or inspect the server."""

import signal
from contextlib import AbstractContextManager
from types import FrameType

from redis.exceptions import RedisError

from config.settings import InvalidSettings, Settings, read_settings
from firstdraft.cli.failures import expected_failures
from firstdraft.local.embedded import EmbeddedServerError
from firstdraft.local.model_store import ModelStoreError
from firstdraft.local.running import SystemNotRunning
from firstdraft.local.supervisor import EngineMissing


def server_failures() -> AbstractContextManager[None]:
    """As `expected_failures`, for the server's failures as well."""
    return expected_failures(
        InvalidSettings, RedisError, EmbeddedServerError, EngineMissing, ModelStoreError, SystemNotRunning
    )


def checked_settings() -> Settings:
    """The settings. Ends the command where they are not valid."""
    with server_failures():
        return read_settings()


def stop_on_signals() -> None:
    """SIGTERM stops as Ctrl-C does, and Ctrl-C stops also where a shell has started us in the background.

    Only the first counts: a second must not interrupt the stop, which is bounded and ends every process.
    """

    def interrupt(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001 - a signal handler
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGINT, interrupt)
