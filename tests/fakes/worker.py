"""A whole worker process around a stand-in engine: `python -m tests.fakes.worker edge|cloud [delay in seconds]`.

Everything but the engine is the real thing; settings come from the environment, as they do for a real worker.
"""

import sys

from config.logs import configure_logs
from config.settings import Settings, read_settings
from schemas.policy import Tier
from tests.fakes.engine import FakeCloud, FakeEdge
from workers.assembly import Assembly
from workers.cloud.verifying import Verifying
from workers.edge.drafting import Drafting
from workers.stage import Stage


def edge(settings: Settings, delay_s: float) -> int:
    """Run an edge worker until it is told to stop."""
    engine = FakeEdge(delay_s=delay_s)
    assembly = Assembly(settings, Tier.EDGE, engine)
    work = Drafting(engine, assembly.store, assembly.holdings, assembly.router, assembly.served, early_escalation=False)
    stage = Stage(Tier.EDGE, assembly.worker_id, assembly.store, assembly.holdings, work.submit, work.conclude)
    return assembly.run(stage, settings.edge.max_in_flight, "fake", engine.statistics)


def cloud(settings: Settings, delay_s: float) -> int:
    """Run a cloud worker until it is told to stop."""
    engine = FakeCloud(delay_s=delay_s)
    assembly = Assembly(settings, Tier.CLOUD, engine)
    work = Verifying(engine, assembly.store, assembly.holdings, assembly.served)
    stage = Stage(Tier.CLOUD, assembly.worker_id, assembly.store, assembly.holdings, work.submit, work.conclude)
    return assembly.run(stage, settings.cloud.max_in_flight, "fake", engine.statistics, engine.verification_statistics)


def main() -> int:
    """Run the tier that the command line names."""
    settings = read_settings()
    configure_logs(settings.log_level)
    delay_s = float(sys.argv[2]) if len(sys.argv) > 2 else 0.005
    return {"edge": edge, "cloud": cloud}[sys.argv[1]](settings, delay_s)


if __name__ == "__main__":
    sys.exit(main())
