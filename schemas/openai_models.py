"""What several of OpenAI's routes share: lists, models, errors, and Firstdraft's own options and report."""

from collections.abc import Sequence
from typing import Any, Generic, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict

from schemas.message import Wire
from schemas.policy import Tier
from schemas.requests import AcceptanceOptions, ConfidenceOptions, TrafficClass
from schemas.results import ConfidenceReport, DraftStatistics, Models, Result, Timings


class ListItem(Wire):
    """What a page lists. The id of a page's last item names the next page."""

    id: str


ItemT = TypeVar("ItemT", bound=ListItem)


class ListPage(Wire, Generic[ItemT]):
    """One page of a list."""

    object: Literal["list"] = "list"
    data: tuple[ItemT, ...]
    first_id: str | None
    last_id: str | None
    has_more: bool

    @classmethod
    def of(cls, items: Sequence[ItemT], has_more: bool) -> Self:
        """The page with these items."""
        first_id, last_id = (items[0].id, items[-1].id) if items else (None, None)
        return cls(data=tuple(items), first_id=first_id, last_id=last_id, has_more=has_more)


class Model(Wire):
    """A model name."""

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
    traffic_class: TrafficClass | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    grammar: str | None = None

    def given(self) -> dict[str, Any]:
        """The options that were given, as `JobRequest` names them."""
        return self.model_dump(exclude_none=True)


class FirstdraftReport(Wire):
    """What Firstdraft knows about an answer and OpenAI's objects have no field for."""

    job_id: str
    policy: str
    tier: Tier
    #: Confidence of the draft, in [0, 1]; null where the edge wrote none.
    confidence: float | None
    #: Share of the draft's tokens that the cloud accepted; null where no draft was verified.
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
