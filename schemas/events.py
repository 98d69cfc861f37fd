"""What happens to a request, in order, as its event stream tells it. Facts, in the past tense or as nouns."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from schemas.message import Wire
from schemas.policy import Tier
from schemas.results import ConfidenceReport, Failure, Result

#: A position in an event stream, as Redis writes it. Its digits are ASCII's: to a pattern, `\d` is any script's.
POSITION = r"^[0-9]{1,19}-[0-9]{1,19}$"


class EventKind(StrEnum):
    """The `type` of each event."""

    QUEUED = "queued"
    STARTED = "started"
    DRAFT = "draft"
    DECISION = "decision"
    ACCEPTED = "accepted"
    CORRECTED = "corrected"
    WRITTEN = "written"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Queued(Wire):
    """The request waits for a tier."""

    type: Literal[EventKind.QUEUED] = EventKind.QUEUED
    tier: Tier


class Started(Wire):
    """A worker took it. An attempt above 1 follows one that ended with its worker; its text starts anew."""

    type: Literal[EventKind.STARTED] = EventKind.STARTED
    tier: Tier
    worker: str
    attempt: int


class DraftText(Wire):
    """The edge wrote `text` at character `position` of the draft. It may yet be corrected."""

    type: Literal[EventKind.DRAFT] = EventKind.DRAFT
    position: int
    text: str


class Decision(Wire):
    """The draft is the answer, or goes on to the cloud."""

    type: Literal[EventKind.DECISION] = EventKind.DECISION
    escalated: bool
    reason: str
    confidence: ConfidenceReport | None = None


class AcceptedText(Wire):
    """`text` at character `position` of the answer was in the draft and stands."""

    type: Literal[EventKind.ACCEPTED] = EventKind.ACCEPTED
    position: int
    text: str


class CorrectedText(Wire):
    """`text` at character `position` of the answer is the cloud's own, where the draft had something else."""

    type: Literal[EventKind.CORRECTED] = EventKind.CORRECTED
    position: int
    text: str


class WrittenText(Wire):
    """`text` at character `position` of the answer is the cloud's own, there being no draft."""

    type: Literal[EventKind.WRITTEN] = EventKind.WRITTEN
    position: int
    text: str


class Done(Wire):
    """The answer stands."""

    type: Literal[EventKind.DONE] = EventKind.DONE
    result: Result


class Failed(Wire):
    """There will be no answer."""

    type: Literal[EventKind.FAILED] = EventKind.FAILED
    failure: Failure


class Cancelled(Wire):
    """Nobody wants the answer any more."""

    type: Literal[EventKind.CANCELLED] = EventKind.CANCELLED


Event = Annotated[
    Queued | Started | DraftText | Decision | AcceptedText | CorrectedText | WrittenText | Done | Failed | Cancelled,
    Field(discriminator="type"),
]

#: Kinds after which nothing follows.
FINAL_KINDS = frozenset({EventKind.DONE, EventKind.FAILED, EventKind.CANCELLED})

event_adapter: TypeAdapter[Event] = TypeAdapter(Event)
