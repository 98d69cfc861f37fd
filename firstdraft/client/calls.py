"""The client's protocol without I/O: which requests it sends and what it makes of the answers.

A conversation is a generator that yields `Call` and `Pause` and is sent a `Reply`. `Client` and `AsyncClient` only
carry conversations out, so retries, waiting and errors are written once and tested without a network.
"""

import json
import random
import time
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, ValidationError

from firstdraft.client.answers import Inference
from firstdraft.client.errors import Busy, JobCancelled, JobFailed, NotInTime, Unreachable, api_error
from firstdraft.client.retries import (
    IDEMPOTENCY_HEADER,
    RETRIED_STATUSES,
    RetryRule,
    may_repeat,
    retry_after_s,
    sent_at,
)
from firstdraft.client.statistics import Counters
from schemas.jobs import Job
from schemas.openai_files import ENDED, Batch, StoredFile
from schemas.problems import Problem
from schemas.requests import Message
from schemas.results import Result

T = TypeVar("T")
ModelT = TypeVar("ModelT", bound=BaseModel)

#: A prompt, or a conversation.
Prompt = str | Sequence[Message | Mapping[str, str]]

#: Seconds for one long poll of a job; the client polls again until the job has finished.
WAIT_S = 30.0
#: Seconds that the gateway may take to store a file after all of it was sent.
UPLOAD_S = 60.0
#: Seconds between polls of a batch, or of a job where the gateway has no room for a long poll.
POLL_S = 0.5


@dataclass(frozen=True)
class Call:
    """One HTTP request. `patience_s` is added to the client's own read timeout."""

    method: str
    path: str
    json: Mapping[str, Any] | None = None
    params: Mapping[str, str | int | float] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    patience_s: float = 0.0
    #: A file to send as a multipart form, streamed from disk.
    upload: Path | None = None
    #: Stream the answer's body into this file instead of into `Reply.content`.
    save_to: Path | None = None


@dataclass(frozen=True)
class Reply:
    """An HTTP answer, or the `error` because of which there is none."""

    status: int = 0
    content: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    error: Exception | None = None
    #: Without an answer: whether the request may have reached the gateway all the same.
    may_have_arrived: bool = True


@dataclass(frozen=True)
class Pause:
    """A wait, in seconds."""

    seconds: float


Conversation = Generator[Call | Pause, Reply, T]


def exchange(call: Call, rule: RetryRule, counters: Counters) -> Conversation[Reply]:
    """Send a call, with retries, until it succeeds. Raises `APIError` or `Unreachable`.

    Every POST gets an idempotency key, so that a repeated one does its work once.
    """
    if call.method == "POST":
        call = replace(call, headers={IDEMPOTENCY_HEADER: str(uuid.uuid4()), **call.headers})
    retries = 0
    while True:
        reply = yield call
        if reply.error is None and reply.status < 400:
            return reply
        delay = None
        if _is_retryable(call, reply):
            now = sent_at(reply.headers.get("date"), datetime.now(UTC))
            asked = retry_after_s(reply.headers.get("retry-after"), now)
            delay = rule.delay_s(retries, asked, random.random())  # noqa: S311 - jitter
        if delay is None:
            if reply.error is not None:
                raise Unreachable(f"{call.method} {call.path}: {reply.error!r} (tries: {retries + 1})") from reply.error
            raise api_error(problem_of(reply))
        retries += 1
        counters.retried()
        yield Pause(delay)


def _is_retryable(call: Call, reply: Reply) -> bool:
    if reply.error is not None:
        return not reply.may_have_arrived or may_repeat(call.method, call.headers)
    return reply.status in RETRIED_STATUSES and may_repeat(call.method, call.headers)


def fetch(model: type[ModelT], call: Call, rule: RetryRule, counters: Counters) -> Conversation[ModelT]:
    """Send a call and read its answer as this message."""
    reply = yield from exchange(call, rule, counters)
    return read_as(model, reply.content)


def problem_of(reply: Reply) -> Problem:
    """A refusal's problem document, or one made from an answer that has none (a proxy's page, an OpenAI error)."""
    try:
        return Problem.model_validate_json(reply.content)
    except ValidationError:
        text = reply.content.decode(errors="replace")
    try:  # the OpenAI-compatible routes
        error = json.loads(text)["error"]
        return Problem(title=error["type"], status=reply.status, detail=error["message"])
    except (ValueError, KeyError, TypeError):
        return Problem(title="No problem document", status=reply.status, detail=text[:500])


def read_as(model: type[ModelT], content: bytes) -> ModelT:
    """Read a message; fields that a newer gateway has added are ignored."""
    return model.model_validate_json(content, extra="ignore")


def job_body(prompt: Prompt, options: Mapping[str, Any]) -> dict[str, Any]:
    """The body of `POST /v1/jobs`; the gateway chooses where an option is None."""
    body = {name: value for name, value in options.items() if value is not None}
    if isinstance(prompt, str):
        return {"prompt": prompt, **body}
    messages = [turn.model_dump() if isinstance(turn, Message) else dict(turn) for turn in prompt]
    return {"messages": messages, **body}


def policy_of(use_draft_verify: bool | None, use_confidence_check: bool | None) -> str | None:
    """The policy with these modules switched on or off; None, the gateway's choice, if neither is given."""
    if use_draft_verify is None and use_confidence_check is None:
        return None
    return {
        (True, True): "baseline",
        (True, False): "no_confidence",
        (False, True): "no_draft_verify",
        (False, False): "edge_only",
    }[use_draft_verify is not False, use_confidence_check is not False]


def result_of(job: Job) -> Result:
    """A finished job's answer. Raises `JobFailed` or `JobCancelled`."""
    if job.status == "cancelled":
        raise JobCancelled(job)
    if job.result is None:
        raise JobFailed(job)
    return job.result


def submit(prompt: Prompt, options: Mapping[str, Any], rule: RetryRule, counters: Counters) -> Conversation[Job]:
    """Submit a prompt; returns the job as it was accepted."""
    counters.requested()
    return (yield from fetch(Job, Call("POST", "/v1/jobs", json=job_body(prompt, options)), rule, counters))


def infer(
    prompt: Prompt, options: Mapping[str, Any], timeout_s: float | None, rule: RetryRule, counters: Counters
) -> Conversation[Inference]:
    """Submit a prompt and wait for its answer. Raises `JobFailed`, `JobCancelled` or `NotInTime`."""
    began = time.perf_counter()
    counters.requested()
    job = yield from answer(job_body(prompt, options), timeout_s, rule, counters)
    inference = Inference.of(job, result_of(job), (time.perf_counter() - began) * 1000)
    counters.answered(inference.latency_ms)
    return inference


def answer(body: Mapping[str, Any], timeout_s: float | None, rule: RetryRule, counters: Counters) -> Conversation[Job]:
    """Submit a job and wait until it has finished: one call if it is quick. Raises `NotInTime`."""
    began = time.monotonic()
    wait_s = WAIT_S if timeout_s is None else min(WAIT_S, timeout_s)
    call = Call("POST", "/v1/jobs", json=body, params={"wait": round(wait_s, 3)}, patience_s=wait_s)
    job = yield from fetch(Job, call, rule, counters)
    if _has_finished(job):
        return job
    left_s = None if timeout_s is None else max(0.0, timeout_s - (time.monotonic() - began))
    return (yield from wait_for(job.id, left_s, rule, counters))


def wait_for(job_id: str, timeout_s: float | None, rule: RetryRule, counters: Counters) -> Conversation[Job]:
    """Wait until the job has finished, successfully or not. Raises `NotInTime`."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    while True:
        wait_s = WAIT_S if deadline is None else min(WAIT_S, max(0.0, deadline - time.monotonic()))
        call = Call("GET", job_path(job_id), params={"wait": round(wait_s, 3)}, patience_s=wait_s)
        try:
            job = yield from fetch(Job, call, rule, counters)
        except Busy:
            job = yield from fetch(Job, replace(call, params={}), rule, counters)
            yield Pause(POLL_S)
        if _has_finished(job):
            return job
        if deadline is not None and time.monotonic() >= deadline:
            raise NotInTime(f"job {job_id} is {job.status} after {timeout_s:g} s; it goes on")


def wait_for_result(job_id: str, timeout_s: float | None, rule: RetryRule, counters: Counters) -> Conversation[Result]:
    """Wait for the job's answer. Raises `JobFailed`, `JobCancelled` or `NotInTime`."""
    return result_of((yield from wait_for(job_id, timeout_s, rule, counters)))


def _has_finished(job: Job) -> bool:
    return job.result is not None or job.failure is not None or job.status == "cancelled"


def start_batch(
    source: Path, endpoint: str, window: str, key: str | None, rule: RetryRule, counters: Counters
) -> Conversation[Batch]:
    """Upload a file and make a batch of it. The same key, name and content give the same batch."""
    headers = _keyed(key, "file")
    upload = Call("POST", "/v1/files", upload=source, patience_s=UPLOAD_S, headers=headers)
    stored = yield from fetch(StoredFile, upload, rule, counters)
    body = {"input_file_id": stored.id, "endpoint": endpoint, "completion_window": window}
    call = Call("POST", "/v1/batches", json=body, headers=_keyed(key, "batch"))
    return (yield from fetch(Batch, call, rule, counters))


def wait_for_batch(
    batch_id: str, on_progress: Callable[[Batch], None], rule: RetryRule, counters: Counters
) -> Conversation[Batch]:
    """Poll the batch until it has ended, and report each state to `on_progress`."""
    while True:
        found = yield from fetch(Batch, batch(batch_id), rule, counters)
        on_progress(found)
        if found.status in ENDED:
            return found
        yield Pause(POLL_S)


def job(job_id: str) -> Call:
    """Fetch a job."""
    return Call("GET", job_path(job_id))


def cancel(job_id: str) -> Call:
    """Cancel a job."""
    return Call("DELETE", job_path(job_id))


def batch(batch_id: str) -> Call:
    """Fetch a batch's state."""
    return Call("GET", f"/v1/batches/{quote(batch_id, safe='')}")


def cancel_batch(batch_id: str) -> Call:
    """Cancel a batch."""
    return Call("POST", f"/v1/batches/{quote(batch_id, safe='')}/cancel")


def download(file_id: str, target: Path) -> Call:
    """Download a file."""
    return Call("GET", f"/v1/files/{quote(file_id, safe='')}/content", save_to=target)


def system() -> Call:
    """Fetch the system's statistics."""
    return Call("GET", "/v1/stats")


def _keyed(key: str | None, what: str) -> dict[str, str]:
    """The idempotency header of one of several POSTs under one key; without a key, `exchange` makes one."""
    return {} if key is None else {IDEMPOTENCY_HEADER: f"{key}-{what}"}


def job_path(job_id: str) -> str:
    """The job's path; an id cannot leave its segment."""
    return f"/v1/jobs/{quote(job_id, safe='')}"
