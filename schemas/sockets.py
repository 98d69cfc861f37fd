"""What is said over `/v1/ws`: JSON messages, each with its `type`. `ref` comes back as it was given."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from schemas.events import POSITION, Event
from schemas.jobs import Job
from schemas.message import Wire
from schemas.problems import Problem
from schemas.requests import JobRequest

Ref = str | int | None


class Submit(BaseModel):
    """Submit a job. Its events follow."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["submit"]
    ref: Ref = None
    body: JobRequest
    #: As the header `Idempotency-Key` of `POST /v1/jobs`, and good for the same jobs.
    idempotency_key: str | None = Field(None, min_length=1, max_length=255)


class Follow(BaseModel):
    """Send a job's events, from the one after a position on."""

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


Asked = Annotated[Submit | Follow | Cancel, Field(discriminator="type")]
asked_adapter: TypeAdapter[Asked] = TypeAdapter(Asked)


class ToldJob(Wire):
    """The job as it is now: the answer to each of the three."""

    type: Literal["job"] = "job"
    ref: Ref = None
    job: Job


class ToldEvent(Wire):
    """Something happened to a job that is followed."""

    type: Literal["event"] = "event"
    job_id: str
    #: Where `follow` can go on.
    position: str
    event: Event


class ToldProblem(BaseModel):
    """A message that could not be obeyed. Whatever is no `Ref` is not given back."""

    type: Literal["problem"] = "problem"
    ref: Ref = None
    problem: Problem
