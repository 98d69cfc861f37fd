"""What `infer` gives: the answer and the figures that people ask for first."""

from dataclasses import dataclass
from typing import Self

from schemas.jobs import Job
from schemas.policy import Tier
from schemas.results import Result


@dataclass(frozen=True)
class Inference:
    """One answered prompt."""

    text: str
    #: Milliseconds from sending the prompt until the answer was here, the network included.
    latency_ms: float
    #: Share of the draft's tokens that the cloud let stand; None where no draft was verified.
    acceptance_rate: float | None
    tier: Tier
    #: How sure the edge was, in [0, 1]; None where it wrote no draft.
    confidence: float | None
    job_id: str
    #: Everything else that is known: tokens, timings of each stage, models, log-probabilities.
    result: Result

    @classmethod
    def of(cls, job: Job, result: Result, latency_ms: float) -> Self:
        """From a job and its answer."""
        return cls(
            text=result.text,
            latency_ms=latency_ms,
            acceptance_rate=None if result.draft is None else result.draft.acceptance_rate,
            tier=result.tier,
            confidence=None if result.confidence is None else result.confidence.value,
            job_id=job.id,
            result=result,
        )
