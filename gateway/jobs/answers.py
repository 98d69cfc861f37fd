"""A job as its owner sees it, and the error for one that is not there."""

from broker.leases import Record
from broker.request_store import RequestStore
from gateway.http.errors import ApiError
from schemas.jobs import Job


def job_of(record: Record) -> Job:
    """A request as its owner sees it."""
    return Job(
        id=record.request_id,
        status=record.state,
        policy=record.request.policy.name,
        created_at=record.request.accepted_at_s,
        result=record.result,
        failure=record.failure,
    )


def no_such_job(store: RequestStore, job_id: str) -> ApiError:
    """404 for an unknown id; 410 where the job's result has expired."""
    if store.is_gone(job_id):
        return ApiError(
            410, "The result has expired", f"The job {job_id!r} has finished; its result is kept no longer."
        )
    return ApiError(404, "No such job", f"There is no job {job_id!r}.")
