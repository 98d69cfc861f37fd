"""A whole worker process around a stand-in engine.

    python -m tests.fakes.worker edge|cloud [seconds a token] [step to die at, countdown, book, signal to die by]

Everything but the engine is the real thing; settings come from the environment, as they do for a real worker. Steps and
the book: see `tests.fakes.death`.
"""

import sys
from pathlib import Path
from signal import Signals
from typing import Any

from broker.leases import LeasedRequest
from config.logs import configure_logs
from config.settings import Settings, read_settings
from schemas.policy import Tier
from tests.fakes.death import Death
from tests.fakes.engine import FakeCloud, FakeEdge
from workers.cloud import verifying
from workers.cloud.auditing import Auditing
from workers.cloud.verifying import Verifying
from workers.edge import drafting
from workers.edge.drafting import Drafting
from workers.runtime.job import Commit, JobRunner
from workers.runtime.worker_process import Assembly


class MortalWork:
    """A tier's work that tells death how far it is.

    The prompt `misconclude` breaks its conclusion, `uncommittable` its commit, `unpublished` what follows it.
    """

    def __init__(self, work: Drafting | Verifying, death: Death | None) -> None:
        self._work: Any = work
        self._death = death

    def submit(self, leased: LeasedRequest) -> Any:
        self.reached("before_start", leased.lease.request_id)
        return self._work.submit(leased)

    def conclude(self, leased: LeasedRequest, product: Any, took_s: float) -> Commit:
        self.reached("before_commit", leased.lease.request_id)
        prompt = leased.request.messages[-1].content
        if "misconclude" in prompt:
            raise RuntimeError("the fake's product cannot be committed")
        commit = self._work.conclude(leased, product, took_s)

        def committed() -> bool:
            if "uncommittable" in prompt:
                raise RuntimeError("the fake's product cannot be committed")
            done = commit()
            self.reached("after_commit", leased.lease.request_id)
            return done

        return committed

    def publish(self, leased: LeasedRequest, product: Any) -> None:
        if "unpublished" in leased.request.messages[-1].content:
            raise RuntimeError("the fake's product cannot be published")
        self._work.publish(leased, product)

    def reached(self, step: str, request_id: str) -> None:
        if self._death is not None:
            self._death.at(step, request_id)


def mortal_jobs(assembly: Assembly, work: Drafting | Verifying, death: Death | None) -> JobRunner[Any]:
    """Jobs that tell death how far they are."""
    return JobRunner(assembly.tier, assembly.store, assembly.in_flight, MortalWork(work, death))


def edge(settings: Settings, delay_s: float, death: Death | None) -> int:
    """Run an edge worker until it is told to stop."""
    engine = FakeEdge(delay_s=delay_s, death=death)
    assembly = Assembly(settings, Tier.EDGE, engine)
    quality = drafting.Quality(assembly.calibrations, assembly.audits, settings.quality.audits.share, assembly.clock)
    work = Drafting(
        engine, assembly.store, assembly.in_flight, assembly.router, assembly.served, quality, early_escalation=False
    )
    jobs = mortal_jobs(assembly, work, death)
    return assembly.run(jobs)


def cloud(settings: Settings, delay_s: float, death: Death | None) -> int:
    """Run a cloud worker until it is told to stop."""
    engine = FakeCloud(delay_s=delay_s, death=death)
    assembly = Assembly(settings, Tier.CLOUD, engine)
    auditing = Auditing(
        engine,
        assembly.audits,
        assembly.calibrations,
        settings.quality.audits,
        busy=assembly.in_flight.__len__,
        clock=assembly.clock,
    )
    quality = verifying.Quality(assembly.calibrations, auditing, assembly.clock)
    work = Verifying(engine, assembly.store, assembly.in_flight, assembly.served, quality)
    jobs = mortal_jobs(assembly, work, death)
    return assembly.run(jobs, auditing.loop)


def main() -> int:
    """Run the tier that the command line names."""
    settings = read_settings()
    configure_logs(settings.log_level)
    tier, delay_s, *fate = sys.argv[1:] if len(sys.argv) > 2 else (sys.argv[1], "0.005")
    death = Death(fate[0], int(fate[1]), Path(fate[2]), Signals[fate[3]]) if fate else None
    return {"edge": edge, "cloud": cloud}[tier](settings, float(delay_s), death)


if __name__ == "__main__":
    sys.exit(main())
