"""What a client says to the gateway and makes of its answers, without doing any of it.

A conversation is a generator that yields `Call` and `Pause` and is sent a `Reply`; `Client` and `AsyncClient` only
carry them out. So retries, waiting and errors are written once and tested without a network.
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
from schemas.openai_files import ENDED, Batch
from schemas.problems import Problem
from schemas.requests import Message
from schemas.results import Result

T = TypeVar("T")
ModelT = TypeVar("ModelT", bound=BaseModel)

#: A prompt, or a conversation.
Prompt = str | Sequence[Message | Mapping[str, str]]

#: Seconds that one wait for a job may take at the gateway; asked again until it has finished.
WAIT_S = 30.0
#: Seconds that the gateway may take to keep a file after all of it was sent.
UPLOAD_S = 60.0
#: Seconds between looks at a batch, or at a job where the gateway has no place for a wait.
LOOK_S = 0.5


@dataclass(frozen=True)
class Call:
    """One HTTP request. `patience_s` is added to the client's own timeout."""

    method: str
    path: str
    json: Mapping[str, Any] | None = None
    params: Mapping[str, str | int | float] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    patience_s: float = 0.0
    #: A file to send, as a form; its content is read while it is sent.
    upload: Path | None = None
    #: Where the answer's body goes while it comes, in place of `Reply.content`.
    save_to: Path | None = None


@dataclass(frozen=True)
class Reply:
    """What came back; `error` instead of a status where nothing did."""

    status: int = 0
    content: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    error: Exception | None = None
    #: Whether the request may have reached the gateway although nothing came back.
    may_have_arrived: bool = True


@dataclass(frozen=True)
class Pause:
    """Seconds to wait."""

    seconds: float


Conversation = Generator[Call | Pause, Reply, T]
#: Tells one call from another, so that a repeated one is not done twice.
new_idempotency_key = uuid.uuid4


def exchange(call: Call, rule: RetryRule, counters: Counters) -> Conversation[Reply]:
    """One call with its retries; gives a successful reply. Raises `APIError` or `Unreachable`."""
    if call.method == "POST":
        call = replace(call, headers={IDEMPOTENCY_HEADER: str(new_idempotency_key()), **call.headers})
    retries = 0
    while True:
        reply = yield call
        if reply.error is None and reply.status < 400:
            return reply
        delay = None
        if _is_worth_another_try(call, reply):
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


def _is_worth_another_try(call: Call, reply: Reply) -> bool:
    if reply.error is not None:
        return not reply.may_have_arrived or may_repeat(call.method, call.headers)
    return reply.status in RETRIED_STATUSES and may_repeat(call.method, call.headers)


def problem_of(reply: Reply) -> Problem:
    """The problem document of a refusal; one is made up for an answer that is none, as a proxy's is."""
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
    """The message, without whatever a newer gateway may say beyond it."""
    return model.model_validate_json(content, extra="ignore")


def job_body(prompt: Prompt, options: Mapping[str, Any]) -> dict[str, Any]:
    """The body of a submission; options that are None are left to the gateway."""
    body = {name: value for name, value in options.items() if value is not None}
    if isinstance(prompt, str):
        return {"prompt": prompt, **body}
    messages = [turn.model_dump() if isinstance(turn, Message) else dict(turn) for turn in prompt]
    return {"messages": messages, **body}


def policy_of(use_draft_verify: bool | None, use_confidence_check: bool | None) -> str | None:
    """The policy that has these modules on; None, where neither is said, for the gateway's own choice.

    With both off the draft is the answer.
    """
    if use_draft_verify is None and use_confidence_check is None:
        return None
    return {
        (True, True): "baseline",
        (True, False): "no_confidence",
        (False, True): "no_draft_verify",
        (False, False): "edge_only",
    }[use_draft_verify is not False, use_confidence_check is not False]


def result_of(job: Job) -> Result:
    """The answer of a job that has finished. Raises `JobFailed` or `JobCancelled`."""
    if job.status == "cancelled":
        raise JobCancelled(job)
    if job.result is None:
        raise JobFailed(job)
    return job.result


def answer(body: Mapping[str, Any], timeout_s: float | None, rule: RetryRule, counters: Counters) -> Conversation[Job]:
    """The job of a submission once it has finished, however; in one call where it is quick. Raises `NotInTime`."""
    began = time.monotonic()
    wait_s = WAIT_S if timeout_s is None else min(WAIT_S, timeout_s)
    call = Call("POST", "/v1/jobs", json=body, params={"wait": round(wait_s, 3)}, patience_s=wait_s)
    reply = yield from exchange(call, rule, counters)
    job = read_as(Job, reply.content)
    if _has_finished(job):
        return job
    left_s = None if timeout_s is None else max(0.0, timeout_s - (time.monotonic() - began))
    return (yield from wait_for(job.id, left_s, rule, counters))


def wait_for(job_id: str, timeout_s: float | None, rule: RetryRule, counters: Counters) -> Conversation[Job]:
    """The job once it has finished, however. Raises `NotInTime`."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    while True:
        wait_s = WAIT_S if deadline is None else min(WAIT_S, max(0.0, deadline - time.monotonic()))
        call = Call("GET", job_path(job_id), params={"wait": round(wait_s, 3)}, patience_s=wait_s)
        try:
            reply = yield from exchange(call, rule, counters)
        except Busy:
            reply = yield from exchange(replace(call, params={}), rule, counters)
            yield Pause(LOOK_S)
        job = read_as(Job, reply.content)
        if _has_finished(job):
            return job
        if deadline is not None and time.monotonic() >= deadline:
            raise NotInTime(f"job {job_id} is {job.status} after {timeout_s:g} s; it goes on")


def _has_finished(job: Job) -> bool:
    return job.result is not None or job.failure is not None or job.status == "cancelled"


def follow_batch(
    batch_id: str, told: Callable[[Batch], None], rule: RetryRule, counters: Counters
) -> Conversation[Batch]:
    """The batch once it has ended; `told` of how far it is at every look."""
    while True:
        reply = yield from exchange(batch(batch_id), rule, counters)
        found = read_as(Batch, reply.content)
        told(found)
        if found.status in ENDED:
            return found
        yield Pause(LOOK_S)


def new_batch(file_id: str, endpoint: str, window: str) -> Call:
    """The request that makes a batch of an uploaded file."""
    body = {"input_file_id": file_id, "endpoint": endpoint, "completion_window": window}
    return Call("POST", "/v1/batches", json=body)


def batch(batch_id: str) -> Call:
    """The request that asks how far a batch is."""
    return Call("GET", f"/v1/batches/{quote(batch_id, safe='')}")


def cancel_batch(batch_id: str) -> Call:
    """The request that stops a batch."""
    return Call("POST", f"/v1/batches/{quote(batch_id, safe='')}/cancel")


def upload(source: Path) -> Call:
    """The request that uploads a file."""
    return Call("POST", "/v1/files", upload=source, patience_s=UPLOAD_S)


def download(file_id: str, target: Path) -> Call:
    """The request that fetches a file."""
    return Call("GET", f"/v1/files/{quote(file_id, safe='')}/content", save_to=target)


def job_path(job_id: str) -> str:
    """Where the job is."""
    return f"/v1/jobs/{quote(job_id, safe='')}"
