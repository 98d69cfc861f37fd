"""`firstdraft up` and `firstdraft demo`: everything on this machine."""

import sys
from pathlib import Path

import click

from config.logs import configure_logs
from config.settings import state_folder
from firstdraft.cli.demo import run_demo
from firstdraft.cli.server import checked_settings, server_failures, stop_on_signals
from firstdraft.cli.terminal import terminal
from firstdraft.local.running import running_system

#: Lines of the processes' output that a failed demo shows.
TAIL_LINES = 30

procfile_option = click.option(
    "--procfile",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    default=None,
    help="Run these processes instead of a gateway and a worker of each tier.",
)


@click.command()
@procfile_option
def up(procfile: Path | None) -> None:
    """Run everything on this machine until Ctrl-C: Redis, the gateway, a worker of each tier."""
    stop_on_signals()
    settings = checked_settings()
    configure_logs(settings.log_level)
    console = terminal()
    try:
        with server_failures(), running_system(settings, procfile, console.print) as system:
            console.print("Ctrl-C stops it.")
            system.wait()
    except KeyboardInterrupt:
        console.print("stopped")


@click.command()
@procfile_option
def demo(procfile: Path | None) -> None:
    """Run everything, answer a handful of prompts, show how each was answered, stop."""
    stop_on_signals()
    settings = checked_settings()
    configure_logs(settings.log_level)
    console = terminal()
    log = state_folder() / "demo.log"
    with server_failures():
        log.parent.mkdir(parents=True, exist_ok=True)
        output = log.open("wb")
    try:
        with output, server_failures():
            console.print(f"what the processes print goes to {log}")
            with running_system(settings, procfile, console.print, output) as system:
                run_demo(system.base_url, console)
    except KeyboardInterrupt:
        sys.exit(130)
    except click.ClickException:
        tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL_LINES:]
        terminal(stderr=True).print("\n".join(tail))
        raise
    console.print("stopped")
