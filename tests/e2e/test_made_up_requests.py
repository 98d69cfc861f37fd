"""Two minutes of `make fuzz` against the system on real engines: nothing that a client can send ends an engine."""

import pytest

from experiments.fuzz_engines import fuzz
from tests.e2e.conftest import System

pytestmark = pytest.mark.e2e

#: Seconds of fuzzing, and its seed.
SECONDS, SEED = 120.0, 13


def workers_of(system: System) -> set[str]:
    return {worker["worker"] for worker in system.stats()["workers"]}


# Beside the fuzz itself, the last cases take their time on a busy machine.
@pytest.mark.timeout(900)
def test_made_up_requests_end_no_engine_and_are_never_our_fault(system: System) -> None:
    workers = workers_of(system)
    tally = fuzz(str(system.client.base_url), SECONDS, SEED, at_once=4)
    assert tally.failed == []
    assert tally.counts["answered"] > 0
    assert tally.counts["refused"] > 0
    assert workers_of(system) == workers, "a worker's name has its process id"


def test_ids_of_another_models_end_of_text_are_refused_in_no_time_by_each_tier(system: System) -> None:
    for policy in ("edge_only", "cloud_only", "baseline"):
        job = system.job(system.submit("Hello", policy=policy, logit_bias={"50256": -100}), wait_s=30.0)
        assert job.failure is not None, job
        assert (job.status, job.failure.kind) == ("failed", "unsupported_option")
        assert "50256" in job.failure.message
