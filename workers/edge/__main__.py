"""The edge worker's composition root: `python -m workers.edge`."""

import sys

from broker.tls import check_tls
from config.logs import configure_logs
from config.settings import InvalidSettings, read_settings
from schemas.policy import Tier
from workers.edge.drafting import Drafting, Quality
from workers.edge.engine import EdgeEngine
from workers.runtime.job import JobRunner
from workers.runtime.model_paths import edge_model_path
from workers.runtime.worker_process import Assembly


def main() -> int:
    """Run until told to stop. Returns the exit status."""
    settings = read_settings()
    configure_logs(settings.log_level)
    check_tls(settings.redis)  # before the engine, which takes a while to start
    engine = EdgeEngine(settings.edge, edge_model_path(settings))
    engine.start()
    assembly = Assembly(settings, Tier.EDGE, engine)
    early = settings.edge.early_escalation.enabled
    quality = Quality(assembly.calibrations, assembly.audits, settings.quality.audits.share, assembly.clock)
    drafting = Drafting(
        engine, assembly.store, assembly.in_flight, assembly.router, assembly.served, quality, early_escalation=early
    )
    jobs = JobRunner(Tier.EDGE, assembly.store, assembly.in_flight, drafting)
    return assembly.run(jobs)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InvalidSettings as problem:
        sys.exit(f"edge: {problem}")
