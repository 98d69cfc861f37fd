"""Requests, drafts and results as tests need them: whole, valid, and the same every time but for what is asked."""

import uuid

from config.settings import read_settings
from gateway.jobs.request_validation import Admission
from schemas.calibration import Calibration, Calibrator, CalibratorKind, FrontierPoint, Goal, Label, Scope
from schemas.drafts import Draft, TokenFigures
from schemas.policy import Tier
from schemas.requests import AcceptedRequest, JobRequest
from schemas.results import FinishReason, Models, Result, Usage
from schemas.workers import CacheStatistics, WorkerReport


def a_request(prompt: str = "why is the sky blue", **body: object) -> AcceptedRequest:
    """A request as the gateway accepts it, under the default settings."""
    return Admission(read_settings()).accept(JobRequest(prompt=prompt, **body), uuid.uuid4().hex, 1.0)


def a_draft(text: str = "because of scattering") -> Draft:
    """A draft of one token a word."""
    num = len(text.split())
    figures = TokenFigures(**dict.fromkeys(TokenFigures.model_fields, (0.25,) * num))
    return Draft(
        text=text,
        token_ids=tuple(range(num)),
        figures=figures,
        finish_reason=FinishReason.STOP,
        prompt_tokens=5,
        model="small",
        vocabulary="words",
    )


def a_result(text: str = "because of scattering", tier: Tier = Tier.EDGE) -> Result:
    """An answer."""
    return Result(
        text=text, finish_reason=FinishReason.STOP, tier=tier, policy="baseline", usage=Usage(), models=Models()
    )


def a_worker_report(worker_id: str, **changes: object) -> WorkerReport:
    """What a live worker says of itself."""
    whole = WorkerReport(
        worker_id=worker_id,
        tier=Tier.EDGE,
        epoch="e1",
        host="h",
        pid=1,
        model="m",
        engine="x",
        ready=True,
        capacity=4,
        in_flight=0,
        cache=CacheStatistics(enabled=True),
        started_at_s=1.0,
        reported_at_s=2.0,
    )
    return whole.model_copy(update=changes)


def a_calibration(**changes: object) -> Calibration:
    """A calibration of the tests' engines: drafts of at least 0.8 are kept, at a risk of 5 %."""
    whole = Calibration(
        scope=Scope(edge_model="fake-small", cloud_model="fake-large", strategy="ensemble"),
        weights={"max_prob": 1.0},
        goal=Goal(max_risk=0.05),
        threshold=0.8,
        calibrator=Calibrator(kind=CalibratorKind.ISOTONIC, knots=((0.0, 0.1), (1.0, 0.9)), labels=300),
        frontier=(
            FrontierPoint(threshold=0.95, kept=0.1, risk=0.0, bound=0.01),
            FrontierPoint(threshold=0.8, kept=0.5, risk=0.03, bound=0.05),
            FrontierPoint(threshold=0.5, kept=0.9, risk=0.2, bound=0.25),
        ),
        labels=(Label(score=0.9, worse=False, worth=1.0), Label(score=0.4, worse=True, worth=0.0)),
    )
    return whole.model_copy(update=changes)
