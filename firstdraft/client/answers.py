"""The answer of `infer`, with the figures that are asked for most."""

from dataclasses import dataclass
from typing import Self

from schemas.jobs import Job
from schemas.policy import Tier
from schemas.results import Result


@dataclass(frozen=True)
class Inference:
    """One answered prompt."""

    text: str
    #: Milliseconds from sending the prompt to receiving its answer, network included.
    latency_ms: float
    #: Share of the draft's tokens that the cloud accepted; None if no draft was verified.
    acceptance_rate: float | None
    tier: Tier
    #: The edge's confidence in its draft, in [0, 1]; None without a draft.
    confidence: float | None
    job_id: str
    #: Everything else: tokens, timings of each stage, models, log-probabilities.
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
