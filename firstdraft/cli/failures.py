"""Failures that a user can mend, as one line and an exit status; a traceback is a bug."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import click
from redis.exceptions import RedisError

from config.settings import InvalidSettings, Settings, read_settings
from firstdraft.cli.ablation import AblationFailed
from firstdraft.cli.json_lines import OtherEncoding
from firstdraft.client.errors import FirstdraftError
from firstdraft.local.demo import DemoFailed
from firstdraft.local.embedded import EmbeddedServerError
from firstdraft.local.model_store import ModelStoreError
from firstdraft.local.running import SystemNotRunning


@contextmanager
def expected_failures() -> Iterator[None]:
    """Turn the failures that a user can mend into one line and exit status 1."""
    try:
        yield
    except (
        InvalidSettings,
        ModelStoreError,
        EmbeddedServerError,
        SystemNotRunning,
        DemoFailed,
        FirstdraftError,
        AblationFailed,
        OtherEncoding,
        RedisError,
        OSError,  # a folder that cannot be written, a full disk: the message names it
    ) as failure:
        raise click.ClickException(str(failure)) from failure
    except UnicodeDecodeError as failure:
        raise click.ClickException(f"the input is no text in {failure.encoding}: {failure}") from failure


def checked_settings() -> Settings:
    """The settings. Ends the command where they are not valid."""
    with expected_failures():
        return read_settings()


def stop_on_signals() -> None:
    """SIGTERM stops as Ctrl-C does, and Ctrl-C stops also where a shell has us started in the background.

    Only the first counts: a second must not keep the stop, which is bounded, from ending every process.
    """

    def interrupt(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001 - a signal handler
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGINT, interrupt)
