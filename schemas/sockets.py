"""Messages on `/v1/ws`: JSON, each with a `type`. An answer repeats the `ref` of the message that it answers."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from schemas.events import POSITION, Event
from schemas.jobs import Job
from schemas.message import Wire
from schemas.problems import Problem
from schemas.requests import JobRequest

Ref = str | int | None


class Submit(BaseModel):
    """Submit a job and follow it."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["submit"]
    ref: Ref = None
    body: JobRequest
    #: As the header `Idempotency-Key` of `POST /v1/jobs`; a key means the same job here and there.
    idempotency_key: str | None = Field(None, min_length=1, max_length=255)


class Follow(BaseModel):
    """Send a job's events, beginning after the position `after`."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["follow"]
    ref: Ref = None
    job_id: str
    after: str = Field("0-0", pattern=POSITION)


class Cancel(BaseModel):
    """Cancel a job."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["cancel"]
    ref: Ref = None
    job_id: str


ClientMessage = Annotated[Submit | Follow | Cancel, Field(discriminator="type")]
client_message_adapter: TypeAdapter[ClientMessage] = TypeAdapter(ClientMessage)


class JobMessage(Wire):
    """The answer to each of the three: the job as it is now."""

    type: Literal["job"] = "job"
    ref: Ref = None
    job: Job


class EventMessage(Wire):
    """An event of a job that is followed."""

    type: Literal["event"] = "event"
    job_id: str
    #: What `follow` takes as `after` to go on from here.
    position: str
    event: Event


class ProblemMessage(BaseModel):
    """The answer to a message that failed."""

    type: Literal["problem"] = "problem"
    ref: Ref = None
    problem: Problem
