"""The messages that the client returns: jobs, results, batches, and the events of a job's stream."""

from schemas.events import (
    AcceptedText,
    Cancelled,
    CorrectedText,
    Decision,
    Done,
    DraftText,
    Event,
    Failed,
    Queued,
    Started,
    WrittenText,
)
from schemas.jobs import Job, SystemReport
from schemas.openai_files import Batch
from schemas.policy import Tier
from schemas.problems import Problem
from schemas.requests import Message
from schemas.results import Failure, FailureKind, FinishReason, Result

# fmt: off
__all__ = [
    "AcceptedText", "Batch", "Cancelled", "CorrectedText", "Decision", "Done", "DraftText", "Event", "Failed",
    "Failure", "FailureKind", "FinishReason", "Job", "Message", "Problem", "Queued", "Result", "Started",
    "SystemReport", "Tier", "WrittenText",
]
