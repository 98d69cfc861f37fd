"""Whether a draft is the answer or the request escalates. Pure: a policy and a report in, a decision out."""

from schemas.events import Decision
from schemas.policy import Policy, Tier
from schemas.results import ConfidenceReport

_KEEPS_NOTHING = (
    "no draft is kept at present: no calibration has a threshold at which the risk is known to be low enough"
)


def decide(policy: Policy, report: ConfidenceReport) -> Decision:
    """Escalate unless the policy has no cloud tier, or trusts confidence and the draft is sure."""
    if not policy.has(Tier.CLOUD):
        return Decision(escalated=False, reason=f"policy {policy.name} has no cloud tier", confidence=report)
    if not policy.confidence_decides:
        return Decision(escalated=True, reason=f"policy {policy.name} escalates every draft", confidence=report)
    if report.threshold > 1.0:
        return Decision(escalated=True, reason=_KEEPS_NOTHING, confidence=report)
    comparison = "at least" if report.sure else "below"
    reason = f"confidence {report.value:.3f} is {comparison} the threshold {report.threshold:.3f}"
    return Decision(escalated=not report.sure, reason=reason, confidence=report)


def beyond_edge(limit: str) -> Decision:
    """The decision where the edge model cannot write a draft, and the policy has a cloud tier, whose model may."""
    return Decision(escalated=True, reason=f"the edge cannot write it: {limit}")
