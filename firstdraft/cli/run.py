"""`firstdraft run`: one process of the server."""

import os
import signal
import sys

import click

from config.logs import configure_logs
from firstdraft.cli.server import checked_settings, server_failures
from firstdraft.local.supervisor import MODULES, SupervisedProcess, server_environment, server_program


@click.command()
@click.argument("process", type=click.Choice(list(MODULES)))
@click.option("--restart", is_flag=True, help="Start it again when it fails, for supervisors that do not (honcho).")
def run(process: str, *, restart: bool) -> None:
    """Run one process of the server: the gateway, or a worker of one tier.

    \b
    REDIS_URL=redis://10.0.0.5:6379 firstdraft run edge
    """
    settings = checked_settings()
    with server_failures():
        program = server_program(process, settings)
    environment = server_environment()
    if not restart:
        # In our place: systemd and Kubernetes signal the process that they started.
        os.execve(program.command[0], list(program.command), environment)  # noqa: S606 - our own command
    configure_logs(settings.log_level)
    supervised = SupervisedProcess(program, environment)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: supervised.stop())
    sys.exit(1 if supervised.run() else 0)
