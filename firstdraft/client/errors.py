"""What a client raises.

FirstdraftError
├── APIError            the gateway refused; has `status` and `problem`
│   ├── InvalidRequest  400, 413, 415, 422: the same request will be refused again
│   ├── NotAllowed      401, 403
│   ├── NotFound        404, 410: no such thing, or not any more
│   └── Busy            429, 503: still so after all tries
├── Unreachable         no answer after all tries
├── JobFailed           the job ended without an answer; has `job`
│   └── JobCancelled
└── NotInTime           the job goes on, but not within the time that was given
"""

from schemas.jobs import Job
from schemas.problems import Problem


class FirstdraftError(Exception):
    """Base of everything that a client raises."""


class APIError(FirstdraftError):
    """The gateway refused."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(f"{problem.status} {problem.title}: {problem.detail}")
        self.status = problem.status
        self.problem = problem


class InvalidRequest(APIError):
    """The request itself is at fault; `problem.errors` names fields."""


class NotAllowed(APIError):
    """The API key is missing, unknown or lacks a scope."""


class NotFound(APIError):
    """No such job, file or batch, or not any more."""


class Busy(APIError):
    """The gateway or Redis is overloaded or down, and was in all tries."""


class Unreachable(FirstdraftError):
    """The gateway did not answer within all tries."""


class JobFailed(FirstdraftError):
    """The job ended without an answer."""

    def __init__(self, job: Job) -> None:
        reason = job.failure.message if job.failure is not None else f"it is {job.status}"
        super().__init__(f"job {job.id}: {reason}")
        self.job = job


class JobCancelled(JobFailed):
    """Somebody cancelled the job."""


class NotInTime(FirstdraftError):
    """The job has not finished within the given time. It goes on, and can be waited for again."""


_BY_STATUS: dict[int, type[APIError]] = {
    400: InvalidRequest,
    413: InvalidRequest,
    415: InvalidRequest,
    422: InvalidRequest,
    401: NotAllowed,
    403: NotAllowed,
    404: NotFound,
    410: NotFound,
    429: Busy,
    503: Busy,
}


def api_error(problem: Problem) -> APIError:
    """The error for a problem document."""
    return _BY_STATUS.get(problem.status, APIError)(problem)
