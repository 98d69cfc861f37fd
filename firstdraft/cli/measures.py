"""Figures over many answers."""

from collections.abc import Sequence

from firstdraft.client.answers import Inference
from schemas.policy import Tier


def edge_share(answers: Sequence[Inference]) -> float:
    """Share of the answers that came from the edge."""
    return sum(answer.tier == Tier.EDGE for answer in answers) / len(answers)


def acceptance_rate(answers: Sequence[Inference]) -> float | None:
    """Accepted over drafted tokens of all verified drafts; None if there was none."""
    drafts = [answer.result.draft for answer in answers if answer.result.draft and answer.result.draft.verified]
    drafted = sum(draft.drafted_tokens for draft in drafts)
    return sum(draft.accepted_tokens for draft in drafts) / drafted if drafted else None
