"""What clients do, without I/O: which requests they send and what they make of the answers.

A conversation is a generator that yields `Call` and `Pause` and is sent a `Reply`. Each method of `Conversations` is a
method of `Client` and of `AsyncClient`, which only carry it out: signatures, docstrings, retries, waiting and errors
are written once, and tested without a network.
"""

import inspect
import json
import random
import time
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import update_wrapper
from pathlib import Path
from typing import Any, TypeVar, get_args
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
from schemas.jobs import Job, SystemReport
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


class Conversations:
    """The conversations of one client. Those that send requests raise `FirstdraftError`."""

    def __init__(self, rule: RetryRule, counters: Counters) -> None:
        self.rule = rule
        self.counters = counters

    def submit(self, /, prompt: Prompt, **options: Any) -> Conversation[Job]:
        """Send a prompt, or a conversation, and return at once. `options` are those of `POST /v1/jobs`."""
        self.counters.requested()
        return (yield from self._fetch(Job, Call("POST", "/v1/jobs", json=job_body(prompt, options))))

    def job(self, job_id: str) -> Conversation[Job]:
        """The job as it is now."""
        return self._fetch(Job, Call("GET", job_path(job_id)))

    def wait(self, job_id: str, timeout_s: float | None = None) -> Conversation[Job]:
        """Wait until the job has finished, successfully or not. Raises `NotInTime`; the job then goes on."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            wait_s = WAIT_S if deadline is None else min(WAIT_S, max(0.0, deadline - time.monotonic()))
            call = Call("GET", job_path(job_id), params={"wait": round(wait_s, 3)}, patience_s=wait_s)
            try:
                job = yield from self._fetch(Job, call)
            except Busy:
                job = yield from self._fetch(Job, replace(call, params={}))
                yield Pause(POLL_S)
            if _has_finished(job):
                return job
            if deadline is not None and time.monotonic() >= deadline:
                raise NotInTime(f"job {job_id} is {job.status} after {timeout_s:g} s; it goes on")

    def result(self, job_id: str, timeout_s: float | None = None) -> Conversation[Result]:
        """Wait for the job's answer. Raises `JobFailed`, `JobCancelled` or `NotInTime`."""
        return result_of((yield from self.wait(job_id, timeout_s)))

    def cancel(self, job_id: str) -> Conversation[Job]:
        """Cancel the job; a finished one stays as it is."""
        return self._fetch(Job, Call("DELETE", job_path(job_id)))

    def infer(
        self,
        /,
        prompt: Prompt,
        *,
        max_tokens: int | None = None,
        use_draft_verify: bool | None = None,
        use_confidence_check: bool | None = None,
        timeout_s: float | None = None,
        **options: Any,
    ) -> Conversation[Inference]:
        """Send a prompt and wait for its answer. Raises `JobFailed`, `JobCancelled`, or `NotInTime` after `timeout_s`.

        `use_draft_verify`: whether the cloud verifies the draft or generates from scratch. `use_confidence_check`:
        whether a confident draft is the answer. If only one is given, the other counts as true; with both off, the
        draft is the answer. `options` are those of `POST /v1/jobs`.
        """
        began = time.perf_counter()
        self.counters.requested()
        policy = policy_of(use_draft_verify, use_confidence_check)
        job = yield from self._answer(
            job_body(prompt, {"policy": policy, "max_tokens": max_tokens, **options}), timeout_s
        )
        inference = Inference.of(job, result_of(job), (time.perf_counter() - began) * 1000)
        self.counters.answered(inference.latency_ms)
        return inference

    def start_batch(
        self, source: Path, *, endpoint: str = "/v1/jobs", window: str = "24h", idempotency_key: str | None = None
    ) -> Conversation[Batch]:
        """Upload a file of requests (JSON lines) and start a batch of them. Returns at once.

        Called again within 24 hours with the same `idempotency_key`, by any process, it returns the same batch.
        """
        headers = _keyed(idempotency_key, "file")
        upload = Call("POST", "/v1/files", upload=source, patience_s=UPLOAD_S, headers=headers)
        stored = yield from self._fetch(StoredFile, upload)
        body = {"input_file_id": stored.id, "endpoint": endpoint, "completion_window": window}
        call = Call("POST", "/v1/batches", json=body, headers=_keyed(idempotency_key, "batch"))
        return (yield from self._fetch(Batch, call))

    def batch_status(self, batch_id: str) -> Conversation[Batch]:
        """The batch as it is now."""
        return self._fetch(Batch, Call("GET", f"/v1/batches/{quote(batch_id, safe='')}"))

    def wait_for_batch(
        self, batch_id: str, on_progress: Callable[[Batch], None] = lambda _: None
    ) -> Conversation[Batch]:
        """Wait until the batch has ended; `on_progress` gets its state at every poll."""
        while True:
            batch = yield from self.batch_status(batch_id)
            on_progress(batch)
            if batch.status in ENDED:
                return batch
            yield Pause(POLL_S)

    def cancel_batch(self, batch_id: str) -> Conversation[Batch]:
        """Stop the batch; what was answered can be downloaded."""
        return self._fetch(Batch, Call("POST", f"/v1/batches/{quote(batch_id, safe='')}/cancel"))

    def download(self, file_id: str, target: Path) -> Conversation[None]:
        """Write a file to `target`; it is streamed, never whole in memory."""
        yield from self.exchange(Call("GET", f"/v1/files/{quote(file_id, safe='')}/content", save_to=target))

    def system(self) -> Conversation[SystemReport]:
        """The whole system's statistics: counters, queues, workers."""
        return self._fetch(SystemReport, Call("GET", "/v1/stats"))

    def exchange(self, call: Call) -> Conversation[Reply]:
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
                delay = self.rule.delay_s(retries, asked, random.random())  # noqa: S311 - jitter
            if delay is None:
                if reply.error is None:
                    raise api_error(problem_of(reply))
                tries = f"tries: {retries + 1}"
                raise Unreachable(f"{call.method} {call.path}: {reply.error!r} ({tries})") from reply.error
            retries += 1
            self.counters.retried()
            yield Pause(delay)

    def _fetch(self, model: type[ModelT], call: Call) -> Conversation[ModelT]:
        """Send a call and read its answer as this message."""
        reply = yield from self.exchange(call)
        return read_as(model, reply.content)

    def _answer(self, body: Mapping[str, Any], timeout_s: float | None) -> Conversation[Job]:
        """Submit a job and wait until it has finished: one call if it is quick. Raises `NotInTime`."""
        began = time.monotonic()
        wait_s = WAIT_S if timeout_s is None else min(WAIT_S, timeout_s)
        call = Call("POST", "/v1/jobs", json=body, params={"wait": round(wait_s, 3)}, patience_s=wait_s)
        job = yield from self._fetch(Job, call)
        if _has_finished(job):
            return job
        left_s = None if timeout_s is None else max(0.0, timeout_s - (time.monotonic() - began))
        return (yield from self.wait(job.id, left_s))


def describe(call: Callable[..., object], method: Callable[..., object]) -> None:
    """Give a client's method the name, docstring and signature of the conversation that it carries out."""
    update_wrapper(call, method)
    signature = inspect.signature(method)
    result = get_args(signature.return_annotation)[-1]
    call.__signature__ = signature.replace(return_annotation=result)  # type: ignore[attr-defined]


def _is_retryable(call: Call, reply: Reply) -> bool:
    if reply.error is not None:
        return not reply.may_have_arrived or may_repeat(call.method, call.headers)
    return reply.status in RETRIED_STATUSES and may_repeat(call.method, call.headers)


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


def _has_finished(job: Job) -> bool:
    return job.result is not None or job.failure is not None or job.status == "cancelled"


def _keyed(key: str | None, what: str) -> dict[str, str]:
    """The idempotency header of one of several POSTs under one key; without a key, `exchange` makes one."""
    return {} if key is None else {IDEMPOTENCY_HEADER: f"{key}-{what}"}


def job_path(job_id: str) -> str:
    """The job's path; an id cannot leave its segment."""
    return f"/v1/jobs/{quote(job_id, safe='')}"
