import pytest
from pydantic import ValidationError

from schemas.policy import Policy, Tier


def row(*tiers: str, decides: bool = False, verifies: bool = False) -> Policy:
    return Policy(name="mine", tiers=tiers, confidence_decides=decides, verify_draft=verifies, kv_caches=True)


@pytest.mark.parametrize("tiers", [(), ("edge", "edge"), ("edge", "cloud", "edge"), ("moon",)])
def test_tiers_that_are_none_twice_or_unknown_are_refused(tiers):
    with pytest.raises(ValidationError, match="tiers"):
        row(*tiers)


@pytest.mark.parametrize("tier", list(Tier))
@pytest.mark.parametrize(("decides", "verifies"), [(True, False), (False, True), (True, True)])
def test_with_one_tier_there_is_nothing_to_decide_or_verify(tier, decides, verifies):
    with pytest.raises(ValidationError, match="'mine'"):
        row(tier, decides=decides, verifies=verifies)


@pytest.mark.parametrize("decides", [True, False])
@pytest.mark.parametrize("verifies", [True, False])
def test_two_tiers_may_do_anything(decides, verifies):
    policy = row("edge", "cloud", decides=decides, verifies=verifies)
    assert policy.has(Tier.EDGE)
    assert policy.has(Tier.CLOUD)


def test_a_policy_has_the_tiers_that_it_names():
    assert row("edge").has(Tier.EDGE)
    assert not row("edge").has(Tier.CLOUD)
