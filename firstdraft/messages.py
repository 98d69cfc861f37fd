"""What the client's answers are made of: jobs, results, events, batches, statistics."""

from schemas.events import (
    AcceptedText,
    Cancelled,
    CorrectedText,
    Decision,
    Done,
    DraftText,
    Event,
    EventKind,
    Failed,
    Queued,
    Started,
    WrittenText,
)
from schemas.jobs import Job, SystemReport, WorkerSummary
from schemas.openai_files import Batch, BatchCounts
from schemas.policy import Tier
from schemas.problems import FieldProblem, Problem
from schemas.requests import Message
from schemas.results import (
    ConfidenceReport,
    DraftStatistics,
    Failure,
    FailureKind,
    FinishReason,
    Models,
    Result,
    Timings,
    TokenLogprob,
    Usage,
)

__all__ = [
    "AcceptedText",
    "Batch",
    "BatchCounts",
    "Cancelled",
    "ConfidenceReport",
    "CorrectedText",
    "Decision",
    "Done",
    "DraftStatistics",
    "DraftText",
    "Event",
    "EventKind",
    "Failed",
    "Failure",
    "FailureKind",
    "FieldProblem",
    "FinishReason",
    "Job",
    "Message",
    "Models",
    "Problem",
    "Queued",
    "Result",
    "Started",
    "SystemReport",
    "Tier",
    "Timings",
    "TokenLogprob",
    "Usage",
    "WorkerSummary",
    "WrittenText",
]
