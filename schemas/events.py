"""The events of a request's event stream."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from schemas.message import Wire
from schemas.policy import Tier
from schemas.results import ConfidenceReport, Failure, Result

#: A position in an event stream: the id of a Redis stream's entry. `\d` would match the digits of any script.
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
    """The request waits for a worker of the tier."""

    type: Literal[EventKind.QUEUED] = EventKind.QUEUED
    tier: Tier


class Started(Wire):
    """A worker began the request. An attempt above 1 follows one whose worker was lost; the text begins again."""

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
    """The draft is the answer, or escalates to the cloud."""

    type: Literal[EventKind.DECISION] = EventKind.DECISION
    escalated: bool
    reason: str
    confidence: ConfidenceReport | None = None


class AcceptedText(Wire):
    """`text` at character `position` of the answer was accepted from the draft."""

    type: Literal[EventKind.ACCEPTED] = EventKind.ACCEPTED
    position: int
    text: str


class CorrectedText(Wire):
    """`text` at character `position` of the answer was written by the cloud in place of the draft's."""

    type: Literal[EventKind.CORRECTED] = EventKind.CORRECTED
    position: int
    text: str


class WrittenText(Wire):
    """`text` at character `position` of the answer was written by the cloud without a draft."""

    type: Literal[EventKind.WRITTEN] = EventKind.WRITTEN
    position: int
    text: str


class Done(Wire):
    """The answer is final."""

    type: Literal[EventKind.DONE] = EventKind.DONE
    result: Result


class Failed(Wire):
    """There will be no answer."""

    type: Literal[EventKind.FAILED] = EventKind.FAILED
    failure: Failure


class Cancelled(Wire):
    """The request was cancelled."""

    type: Literal[EventKind.CANCELLED] = EventKind.CANCELLED


Event = Annotated[
    Queued | Started | DraftText | Decision | AcceptedText | CorrectedText | WrittenText | Done | Failed | Cancelled,
    Field(discriminator="type"),
]

#: The kinds of a stream's last event.
FINAL_KINDS = frozenset({EventKind.DONE, EventKind.FAILED, EventKind.CANCELLED})

event_adapter: TypeAdapter[Event] = TypeAdapter(Event)
