"""OpenAI's shapes that several of its routes share: models, errors, options of ours."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from schemas.message import Wire
from schemas.policy import Tier
from schemas.requests import AcceptanceOptions, ConfidenceOptions
from schemas.results import ConfidenceReport, DraftStatistics, Models, Result, Timings


class Model(Wire):
    """A model's name."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str


class ModelList(Wire):
    """All models."""

    object: Literal["list"] = "list"
    data: tuple[Model, ...]


class OpenAIErrorBody(Wire):
    """What went wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class OpenAIError(Wire):
    """An error as OpenAI's clients read it."""

    error: OpenAIErrorBody


class FirstdraftOptions(BaseModel):
    """What a request may ask of Firstdraft beyond OpenAI's own options: `extra_body={"firstdraft": …}`."""

    model_config = ConfigDict(extra="forbid")

    confidence: ConfidenceOptions | None = None
    acceptance: AcceptanceOptions | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    grammar: str | None = None

    def given(self) -> dict[str, Any]:
        """The options that were given, as `JobRequest` names them."""
        return self.model_dump(exclude_none=True)


class FirstdraftReport(Wire):
    """What Firstdraft knows about an answer beyond what OpenAI's shapes hold."""

    job_id: str
    policy: str
    tier: Tier
    #: How sure the edge was, in [0, 1]; absent where it wrote no draft.
    confidence: float | None
    #: Share of the draft's tokens that the cloud let stand; absent where no draft was verified.
    acceptance_rate: float | None
    confidence_report: ConfidenceReport | None
    draft: DraftStatistics | None
    timings: Timings
    models: Models


def report_of(job_id: str, result: Result) -> FirstdraftReport:
    """The report of one answer."""
    return FirstdraftReport(
        job_id=job_id,
        policy=result.policy,
        tier=result.tier,
        confidence=None if result.confidence is None else result.confidence.value,
        acceptance_rate=None if result.draft is None else result.draft.acceptance_rate,
        confidence_report=result.confidence,
        draft=result.draft,
        timings=result.timings,
        models=result.models,
    )
