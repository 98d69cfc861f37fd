import hypothesis.strategies as st
import pytest
from hypothesis import given

from config.settings import read_settings
from gateway.jobs.request_validation import Admission
from schemas.policy import Tier
from schemas.results import ConfidenceReport
from workers.edge.decision import decide

POLICIES = Admission(read_settings()).policies

#: Whether a sure and whether an unsure draft escalates, and what the reason says.
TABLE = {
    "baseline": (False, True, "confidence"),
    "no_confidence": (True, True, "escalates every draft"),
    "no_draft_verify": (False, True, "confidence"),
    "no_kv_cache": (False, True, "confidence"),
    "edge_only": (False, False, "no cloud tier"),
}


def report(value: float, threshold: float = 0.5) -> ConfidenceReport:
    return ConfidenceReport(value=value, threshold=threshold, strategy="margin", sure=value >= threshold)


@pytest.mark.parametrize("name", list(TABLE))
@pytest.mark.parametrize("value", [0.9, 0.5, 0.1])
def test_each_policy_decides_as_its_row_says(name, value):
    sure, unsure, reason = TABLE[name]
    decision = decide(POLICIES[name], report(value))
    assert decision.escalated is (sure if value >= 0.5 else unsure)
    assert reason in decision.reason
    assert decision.confidence == report(value)


def test_the_table_has_every_policy_that_drafts():
    assert set(TABLE) == {name for name, policy in POLICIES.items() if policy.has(Tier.EDGE)}


@given(name=st.sampled_from(list(TABLE)), value=st.floats(0, 1), threshold=st.floats(0, 1))
def test_the_reason_agrees_with_the_decision(name, value, threshold):
    decision = decide(POLICIES[name], report(value, threshold))
    if "at least" in decision.reason or "no cloud" in decision.reason:
        assert not decision.escalated
    else:
        assert "below" in decision.reason or "every draft" in decision.reason
        assert decision.escalated
