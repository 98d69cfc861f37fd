"""The system's state: stats, workers."""

import click
from rich.table import Table

from firstdraft.cli.failures import expected_failures
from firstdraft.cli.options import client_for, gateway_options, print_json
from firstdraft.cli.terminal import terminal


@click.command()
@gateway_options
def stats(url: str | None, as_json: bool) -> None:
    """Counters, queues, and how many answers left from the edge.

    \b
    firstdraft stats
    firstdraft stats --json | jq .waiting
    """
    with expected_failures(), client_for(url) as client:
        report = client.system()
    if as_json:
        print_json(report)
        return
    table = Table("what", "figure", show_header=False)
    for tier, waiting in report.waiting.items():
        table.add_row(f"waiting for {tier}", str(waiting))
    for name, count in report.counters.items():
        table.add_row(name.replace("_", " "), str(count))
    if report.edge_share is not None:
        table.add_row("answered at the edge", f"{report.edge_share:.0%}")
    if report.acceptance_rate is not None:
        table.add_row("draft tokens accepted", f"{report.acceptance_rate:.0%}")
    terminal().print(table)


@click.command()
@gateway_options
def workers(url: str | None, as_json: bool) -> None:
    """The live workers. Exit status 1 if there is nworker.

    \b
    firstdraft workers
    """
    with expected_failures(), client_for(url) as client:
        found = client.system().workers
    if as_json:
        for worker in found:
            print_json(worker)
    else:
        table = Table("worker", "tier", "model", "engine", "host", "in flight", "done", "up", "ready")
        for worker in found:
            load = f"{worker.in_flight}/{worker.capacity}"
            up, ready = f"{worker.uptime_s / 60:.0f} min", "yes" if worker.ready else "no"
            names = (worker.worker, worker.tier, worker.model, worker.engine, worker.host)
            table.add_row(*names, load, str(worker.jobs_done), up, ready)
        terminal().print(table)
    if not found:
        raise click.ClickException("no live worker: start one (firstdraft up, or firstdraft run edge)")
