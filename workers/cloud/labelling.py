"""The label of a draft that the cloud has verified: whether its own answer says the same. Pure."""

from quality.labels import label_verified
from schemas.calibration import Label
from schemas.drafts import Draft
from workers.cloud.answer_order import CloudAnswer


def label_of(draft: Draft, answer: CloudAnswer, rule: str, *, kept: bool, drawn: float, now_s: float) -> Label | None:
    """The label by a similarity rule, or None where the answer says nothing about the draft.

    That is where the draft is not complete, or where the cloud accepted tokens that were not its own choice. The
    request must be greedy.
    """
    statistics, report = answer.draft, draft.confidence
    if draft.escalated_early or report is None or (statistics is not None and statistics.lossless is False):
        return None
    stand = None if statistics is None else statistics.acceptance_rate
    found = label_verified(draft.text, answer.text, similarity=rule, standing=stand)
    return Label(
        score=report.value,
        parts=report.parts,
        worse=found.worse,
        worth=found.worth,
        drawn=drawn,
        source=found.source,
        kept=kept,
        version=report.calibration or 0,
        at_s=now_s,
    )
