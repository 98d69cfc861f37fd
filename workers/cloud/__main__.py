"""The cloud worker's composition root: `python -m workers.cloud`."""

import math
import sys

from broker.tls import check_tls
from config.logs import configure_logs
from config.settings import InvalidSettings, read_settings
from schemas.policy import Tier
from workers.cloud.auditing import Auditing
from workers.cloud.engines import build_engine
from workers.cloud.verifying import Quality, Verifying
from workers.runtime.cpu_priority import lower_priority, patience
from workers.runtime.job import JobRunner
from workers.runtime.model_paths import cloud_model_path
from workers.runtime.worker_process import Assembly


def main() -> int:
    """Run until told to stop. Returns the exit status."""
    settings = read_settings()
    configure_logs(settings.log_level)
    check_tls(settings.redis)  # before the engine, which takes a while to start
    lower_priority(settings.cloud.niceness)
    model_path = cloud_model_path(settings) if settings.cloud.engine == "vllm" else ""
    engine = build_engine(settings.cloud, model_path)
    engine.start()
    # A remote server has its own time limit; a worker with lower priority may be kept waiting by other programs.
    is_remote = settings.cloud.engine == "openai"
    stall_s = math.inf if is_remote else settings.requests.stall_s * patience(settings.cloud.niceness)
    assembly = Assembly(settings, Tier.CLOUD, engine, stall_s=stall_s)
    auditing = Auditing(
        engine,
        assembly.audits,
        assembly.calibrations,
        settings.quality.audits,
        busy=assembly.in_flight.__len__,
        clock=assembly.clock,
    )
    quality = Quality(assembly.calibrations, auditing, assembly.clock)
    verifying = Verifying(engine, assembly.store, assembly.in_flight, assembly.served, quality)
    jobs = JobRunner(Tier.CLOUD, assembly.store, assembly.in_flight, verifying)
    return assembly.run(jobs, auditing.loop)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InvalidSettings as problem:
        sys.exit(f"cloud: {problem}")
