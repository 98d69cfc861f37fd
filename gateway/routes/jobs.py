"""/v1/jobs: submit a prompt, read what became of it, cancel it."""

import time

from flask import Response
from flask_openapi3.openapi import OpenAPI
from pydantic import BaseModel, Field

from broker.records import Record
from broker.states import FINISHED
from broker.streams import BEGINNING
from gateway.answers import RETRY_AFTER_S, json_answer, no_such_job
from gateway.documents import JOBS, problems
from gateway.services import Services
from gateway.submitting import submit as submit_request
from schemas.jobs import Job
from schemas.requests import JobRequest


class JobPath(BaseModel):
    """Which job."""

    job_id: str = Field(description="The id that POST /v1/jobs answered with.")


class WaitQuery(BaseModel):
    """How long to wait."""

    wait: float = Field(0.0, ge=0.0, description="Seconds to wait for the job to finish; cut to gateway.max_wait_s.")


def add(app: OpenAPI, services: Services) -> None:
    """Add the routes."""
    store, limits = services.store, services.settings

    @app.post("/v1/jobs", tags=[JOBS], responses={202: Job, **problems(400, 413, 415)})
    def submit(body: JobRequest) -> Response:
        """Submit a prompt. The answer is at the job's own address."""
        accepted = submit_request(services, body)
        job = Job(
            id=accepted.request_id,
            status="queued" if "edge" in accepted.policy.tiers else "escalated",
            policy=accepted.policy.name,
            created_at=accepted.accepted_at_s,
        )
        return json_answer(job, 202, {"Location": f"/v1/jobs/{job.id}", "Retry-After": RETRY_AFTER_S})

    @app.get("/v1/jobs/<job_id>", tags=[JOBS], responses={200: Job, **problems(404)})
    def read(path: JobPath, query: WaitQuery) -> Response:
        """Get the job, at once or when it has finished."""
        record = store.read(path.job_id)
        if record is not None and record.state not in FINISHED and query.wait > 0:
            with services.slots.taken():
                deadline = time.monotonic() + min(query.wait, limits.max_wait_s)
                for _ in services.hub.follow(path.job_id, BEGINNING, deadline):
                    pass
            record = store.read(path.job_id)
        return no_such_job(path.job_id) if record is None else _job(record)

    @app.delete("/v1/jobs/<job_id>", tags=[JOBS], responses={200: Job, **problems(404)})
    def cancel(path: JobPath) -> Response:
        """Cancel the job. One that has finished stays as it is."""
        store.cancel(path.job_id)
        record = store.read(path.job_id)
        return no_such_job(path.job_id) if record is None else _job(record)


def job_of(record: Record) -> Job:
    """The job as its owner sees it."""
    return Job(
        id=record.request_id,
        status=record.state,
        policy=record.request.policy.name,
        created_at=record.request.accepted_at_s,
        result=record.result,
        failure=record.failure,
    )


def _job(record: Record) -> Response:
    return json_answer(job_of(record), headers={} if record.state in FINISHED else {"Retry-After": RETRY_AFTER_S})
