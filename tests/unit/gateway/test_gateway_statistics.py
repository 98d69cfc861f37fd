import pytest

from config.settings import read_settings
from gateway.jobs.request_validation import Admission
from gateway.monitoring import statistics
from schemas.policy import Tier
from schemas.workers import CacheStatistics, VerificationStatistics, WorkerReport
from tests.samples import a_worker_report

POLICIES = Admission(read_settings()).policies


def worker(name: str, tier: Tier, *, ready: bool = True, verification=None, **cache: int) -> WorkerReport:
    return a_worker_report(
        name,
        tier=tier,
        ready=ready,
        in_flight=1,
        jobs_done=2,
        cache=CacheStatistics(enabled=True, **cache),
        verification=verification,
        started_at_s=100.0,
        reported_at_s=130.0,
    )


EDGE, CLOUD = worker("edge-1", Tier.EDGE), worker("cloud-1", Tier.CLOUD)


@pytest.mark.parametrize("policy", POLICIES.values(), ids=lambda policy: policy.name)
@pytest.mark.parametrize("live", [(), (EDGE,), (CLOUD,), (EDGE, CLOUD)], ids=["none", "edge", "cloud", "both"])
def test_a_policy_is_ready_when_each_of_its_tiers_has_a_live_worker(policy, live):
    state = statistics.readiness(policy, live)
    lacking = [tier for tier in policy.tiers if tier not in {report.tier for report in live}]
    assert state.ready is (not lacking)
    assert state.missing == tuple(f"no live {tier} worker" for tier in lacking)
    assert set(state.tiers) == set(policy.tiers)
    assert state.redis
    assert state.policy == policy.name


def test_a_ready_system_names_its_workers():
    state = statistics.readiness(POLICIES["baseline"], [EDGE, worker("edge-2", Tier.EDGE), CLOUD])
    assert state.tiers == {Tier.EDGE: ("edge-1", "edge-2"), Tier.CLOUD: ("cloud-1",)}


def test_a_worker_whose_engine_died_does_not_count():
    state = statistics.readiness(POLICIES["edge_only"], [worker("edge-1", Tier.EDGE, ready=False)])
    assert not state.ready
    assert state.missing == ("no live edge worker",)


def test_without_redis_nothing_is_ready_and_redis_is_named():
    state = statistics.readiness(POLICIES["baseline"], None)
    assert not state.ready
    assert not state.redis
    assert state.missing == ("redis does not answer",)


def test_caches_are_summed_for_each_tier():
    one = worker("edge-1", Tier.EDGE, hits=3, tokens=100, max_tokens=1000, bytes=7)
    two = worker("edge-2", Tier.EDGE, hits=4, tokens=50, max_tokens=1000, bytes=8)
    three = worker("cloud-1", Tier.CLOUD, hits=9)
    report = statistics.caches([one, two, three])
    assert report.tiers[Tier.EDGE] == CacheStatistics(enabled=True, hits=7, tokens=150, max_tokens=2000, bytes=15)
    assert report.tiers[Tier.CLOUD].hits == 9
    assert [cache.worker for cache in report.workers] == ["edge-1", "edge-2", "cloud-1"]


def test_a_tier_without_workers_has_no_cache():
    assert statistics.caches([]).tiers == {tier: CacheStatistics(enabled=False) for tier in Tier}


def test_shares_are_absent_before_there_is_anything_to_share():
    report = statistics.system({}, {"edge": 0, "cloud": 0}, [EDGE, CLOUD])
    assert report.edge_share is None
    assert report.acceptance_rate is None


def test_shares_are_over_all_answers_and_all_drafted_tokens():
    verified = [
        worker("c1", Tier.CLOUD, verification=VerificationStatistics(drafted_tokens=30, accepted_tokens=20)),
        worker("c2", Tier.CLOUD, verification=VerificationStatistics(drafted_tokens=10, accepted_tokens=10)),
    ]
    report = statistics.system(
        {"answered_edge": 3, "answered_cloud": 1, "failed": 5}, {"edge": 2, "cloud": 0}, verified
    )
    assert report.edge_share == 0.75
    assert report.acceptance_rate == 0.75
    assert report.waiting == {"edge": 2, "cloud": 0}
    assert report.counters["failed"] == 5


def test_a_worker_is_summed_up_with_how_long_it_has_been_there():
    (summary,) = statistics.system({}, {}, [EDGE]).workers
    assert (summary.worker, summary.uptime_s, summary.in_flight, summary.jobs_done) == ("edge-1", 30.0, 1, 2)
