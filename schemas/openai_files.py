"""Files and batches, as OpenAI defines them."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from schemas.message import Wire
from schemas.openai_models import ListItem, ListPage
from schemas.owners import NOBODY, Owner
from schemas.requests import ANONYMOUS

#: What a file may be for.
Purpose = Literal["batch", "batch_output"]
#: Routes whose bodies a batch's lines may hold.
Endpoint = Literal["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/jobs"]
BatchStatus = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
]
#: Statuses after which nothing follows.
ENDED: frozenset[BatchStatus] = frozenset({"failed", "completed", "expired", "cancelled"})
#: The longest completion window, in seconds. Batches are kept for longer than this (broker/batches.py).
MAX_WINDOW_S = 30 * 24 * 3600
#: Seconds in each unit of a completion window.
WINDOW_UNITS = {"s": 1, "m": 60, "h": 3600}


class StoredFile(ListItem):
    """A file's description."""

    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: Purpose
    status: Literal["processed"] = "processed"
    expires_at: int | None = None
    #: The owner; OpenAI's clients ignore fields that they do not know.
    owner: str = ANONYMOUS


class FileList(ListPage[StoredFile]):
    """One page of files."""


class FileDeleted(Wire):
    """The file is gone."""

    id: str
    object: Literal["file"] = "file"
    deleted: bool = True


class BatchRequest(BaseModel):
    """The body of `POST /v1/batches`."""

    model_config = ConfigDict(extra="ignore")

    input_file_id: str
    endpoint: Endpoint
    #: How long the batch may take: a number of seconds, minutes or hours. OpenAI allows `24h` only.
    completion_window: str = Field(pattern=r"^[1-9]\d{0,4}[smh]$")
    metadata: dict[str, str] | None = None

    @field_validator("completion_window")
    @classmethod
    def _is_not_too_long(cls, value: str) -> str:
        if window_s(value) > MAX_WINDOW_S:
            raise ValueError(f"must be at most {MAX_WINDOW_S // 3600}h")
        return value


def window_s(completion_window: str) -> int:
    """The window in seconds."""
    return int(completion_window[:-1]) * WINDOW_UNITS[completion_window[-1]]


class BatchCounts(Wire):
    """Numbers of input lines."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class BatchProblem(Wire):
    """Why a whole batch failed."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class BatchProblems(Wire):
    """All that is wrong with the batch."""

    object: Literal["list"] = "list"
    data: tuple[BatchProblem, ...]


class Batch(ListItem):
    """A batch. Times are seconds since the epoch."""

    object: Literal["batch"] = "batch"
    endpoint: Endpoint
    errors: BatchProblems | None = None
    input_file_id: str
    completion_window: str
    status: BatchStatus = "validating"
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: int
    in_progress_at: int | None = None
    expires_at: int
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: BatchCounts = BatchCounts()
    metadata: dict[str, str] | None = None
    #: The owner of the batch and of the jobs that it submits.
    owner: Owner = NOBODY


class BatchList(ListPage[Batch]):
    """One page of batches."""
