"""The second half of `make fuzz`: generated requests to the whole system on real engines, for some minutes.

    python -m experiments.fuzz_engines [--minutes 10] [--seed 1] [--at-once 8]

A case fails if its status, or the failure of its job, says that the server is at fault; if a stream ends in such an
error; or if an answer that the model ended is not in the requested format. No engine may die. The last line is one JSON
document.
"""

import json
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx
import jsonschema

from experiments.generated_requests import Body, generate
from experiments.harness.report import parser, print_document
from experiments.harness.system import System, running_system
from schemas.policy import Tier
from schemas.results import FailureKind

#: Seconds that one case may take; some wait for a cloud engine that others keep busy.
CASE_S = 300.0
#: Failures of a job that are the request's own fault.
CLIENT_FAULTS = {FailureKind.UNSUPPORTED_OPTION, FailureKind.PROMPT_TOO_LONG}
#: Failed cases that are printed, and characters of each.
MAX_SHOWN, MAX_CHARS = 20, 600


@dataclass
class Tally:
    """Counts of cases by outcome. Safe on any thread."""

    counts: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)
    slowest_refusal_s: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, outcome: str, seconds: float, path: str, body: Body, why: str = "") -> None:
        """Count a case. `why`: the reason if it failed."""
        with self._lock:
            self.counts["cases"] += 1
            self.counts[outcome] += 1
            if outcome == "refused":
                self.slowest_refusal_s = max(self.slowest_refusal_s, seconds)
            if why:
                self.counts["failed"] += 1
                self.failed.append(f"{why} | {path} {json.dumps(body)}"[:MAX_CHARS])


def main() -> int:
    """Fuzz, print what failed and one JSON document; the exit status is 1 if anything did."""
    arguments = parser(__doc__)
    arguments.add_argument("--minutes", type=float, default=10.0)
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--at-once", type=int, default=8)
    options = arguments.parse_args()
    with running_system() as system:
        for tier in Tier:
            system.add_worker(f"{tier}-engine", tier)
        system.wait_until_ready()
        tally = fuzz(system.url, options.minutes * 60, options.seed, options.at_once)
        deaths = _engine_deaths(system)
    for line in tally.failed[:MAX_SHOWN]:
        print(line)
    names = ("cases", "answered", "refused", "failed", "5xx", "wrong_form")
    figures: dict[str, float] = {**{name: tally.counts[name] for name in names}, "engine_deaths": deaths}
    problems = [f"{figures[name]} {name}" for name in ("failed", "engine_deaths") if figures[name]]
    if not tally.counts["answered"]:
        problems.append("no request was answered")
    figures["slowest_refusal_s"] = round(tally.slowest_refusal_s, 2)
    return print_document("fuzz_engines", figures, problems)


def fuzz(url: str, seconds: float, seed: int, at_once: int = 8) -> Tally:
    """Send generated requests to a running system for so long, `at_once` at a time. Blocks."""
    tally = Tally()
    deadline = time.monotonic() + seconds
    limits = httpx.Timeout(CASE_S)
    with httpx.Client(base_url=url, trust_env=False, timeout=limits) as client, ThreadPoolExecutor(at_once) as pool:
        senders = [
            pool.submit(_send, client, tally, random.Random(seed * 1000 + number), deadline)
            for number in range(at_once)
        ]
        for sender in senders:
            sender.result(seconds + 2 * CASE_S)
    return tally


def _engine_deaths(system: System) -> int:
    """Worker processes that ended, and engines that died within their process, since the start."""
    return sum(len(worker.deaths) + worker.read_log().count("engine_died") for worker in system.workers())


def _send(client: httpx.Client, tally: Tally, rng: random.Random, deadline: float) -> None:
    while time.monotonic() < deadline:
        path, body = generate(rng)
        raw = json.dumps(body).encode()  # escapes lone surrogates, as a careless client would
        began = time.monotonic()
        try:
            outcome, why = _outcome_of(client, path, raw, body)
        except httpx.HTTPError as error:
            outcome, why = "no_answer", f"{type(error).__name__}: {error}"
        tally.note(outcome, time.monotonic() - began, path, body, why)


def _outcome_of(client: httpx.Client, path: str, raw: bytes, body: Body) -> tuple[str, str]:
    """Send one request; its outcome, and the reason if that is a failure."""
    answer = client.post(path, content=raw, headers={"Content-Type": "application/json"})
    if answer.status_code >= 500:
        return "5xx", f"{answer.status_code}: {answer.text[:200]}"
    if answer.status_code >= 400:
        return "refused", ""
    if path == "/v1/jobs":
        return _job_outcome(client, answer.json()["id"], body)
    if body.get("stream"):
        return _stream_outcome(answer.text)
    choice = answer.json()["choices"][0]
    return _check_format(choice["message"]["content"], choice["finish_reason"], body, _schema_of(body))


def _job_outcome(client: httpx.Client, job_id: str, body: Body) -> tuple[str, str]:
    deadline = time.monotonic() + CASE_S
    while time.monotonic() < deadline:
        job = client.get(f"/v1/jobs/{job_id}", params={"wait": 10}).json()
        if job["status"] == "succeeded":
            return _check_format(job["result"]["text"], job["result"]["finish_reason"], body, body.get("json_schema"))
        if job["status"] == "failed":
            failure = job["failure"]
            if failure["kind"] in CLIENT_FAULTS:
                return "refused", ""
            return "5xx", f"{failure['kind']}: {failure['message'][:200]}"
        if job["status"] == "cancelled":
            return "5xx", "the job was cancelled"
    return "no_answer", f"job {job_id} did not end within {CASE_S:g} s"


def _stream_outcome(text: str) -> tuple[str, str]:
    for document in _documents(text):
        if error := document.get("error"):
            if error["type"] == "server_error":
                return "5xx", f"in a stream: {error['message'][:200]}"
            return "refused", ""
    return "answered", ""


def _documents(stream: str) -> Iterator[dict[str, Any]]:
    for line in stream.splitlines():
        if line.startswith("data: {"):
            yield json.loads(line.removeprefix("data: "))


def _schema_of(body: Body) -> Body | None:
    asked = body.get("response_format")
    if asked is None:
        return None
    schema: Body = asked["json_schema"]["schema"] if asked["type"] == "json_schema" else asked.get("schema", {})
    return schema


def _check_format(text: str, finish_reason: str, body: Body, schema: Body | None) -> tuple[str, str]:
    """Whether the answer fits the schema. Only one that the model itself ended must: a stop string may have cut it."""
    if schema is None or finish_reason != "stop" or body.get("stop"):
        return "answered", ""
    try:
        value = json.loads(text)
    except ValueError as error:
        return "wrong_form", f"no JSON ({error}): {text[:200]!r}"
    wrong = next(jsonschema.Draft202012Validator(schema).iter_errors(value), None)
    return ("answered", "") if wrong is None else ("wrong_form", f"{wrong.message[:200]} in {text[:200]!r}")


if __name__ == "__main__":
    sys.exit(main())
