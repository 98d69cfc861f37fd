"""`make fuzz`, its second half: made-up requests to the whole system on real engines, for some minutes.

    python -m experiments.fuzz_engines [--minutes 10] [--seed 1] [--at-once 8]

A case fails if its status, or what its job fails with, says that we are at fault; if a stream ends in such an error;
or if an answer that ended by itself is not in the form that was asked for. No engine may die. The last line is one
JSON document.
"""

import argparse
import json
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import jsonschema

from experiments.chaos.system import System, running
from experiments.made_up_requests import Body, made_up
from schemas.policy import Tier
from schemas.results import FailureKind

#: Seconds that one case may take; some wait for a cloud engine that others keep busy.
CASE_S = 300.0
#: What a job may fail with: the request's own fault.
OWN_FAULTS = {FailureKind.UNSUPPORTED_OPTION, FailureKind.PROMPT_TOO_LONG}
#: Cases that are printed of those that failed, and characters of each.
MOST_SHOWN, MOST_CHARS = 20, 600
#: What says whether an answer is in its form.
JUDGE = jsonschema.Draft202012Validator


@dataclass
class Tally:
    """What became of the cases so far. Safe on any thread."""

    counts: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)
    slowest_refusal_s: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, outcome: str, took_s: float, path: str, body: Body, why: str = "") -> None:
        """One case more; `why` where it failed."""
        with self._lock:
            self.counts["cases"] += 1
            self.counts[outcome] += 1
            if outcome == "refused":
                self.slowest_refusal_s = max(self.slowest_refusal_s, took_s)
            if why:
                self.counts["failed"] += 1
                self.failed.append(f"{why} | {path} {json.dumps(body)}"[:MOST_CHARS])


def main() -> int:
    """Fuzz, print what failed and one JSON document; answers 1 if anything did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--at-once", type=int, default=8)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="firstdraft-fuzz-") as name, running(Path(name)) as system:
        for tier in Tier:
            system.add(f"{tier}-engine", [sys.executable, "-m", f"workers.{tier}"])
        system.wait_until_ready()
        tally = fuzz(system.url, arguments.minutes * 60, arguments.seed, arguments.at_once)
        deaths = engine_deaths(system)
    for line in tally.failed[:MOST_SHOWN]:
        print(line)
    names = ("cases", "answered", "refused", "failed", "5xx", "wrong_form")
    figures = {name: tally.counts[name] for name in names} | {"engine_deaths": deaths}
    problems = [f"{figures[name]} {name}" for name in ("failed", "engine_deaths") if figures[name]]
    times = {"slowest_refusal_s": round(tally.slowest_refusal_s, 2)}
    print(json.dumps({"bench": "fuzz_engines", "figures": figures | times, "problems": problems}))
    return 1 if problems or not tally.counts["answered"] else 0


def fuzz(url: str, seconds: float, seed: int, at_once: int = 8) -> Tally:
    """Send made-up requests to a running system for so long, and tell what became of them. Blocks."""
    tally = Tally()
    ends = time.monotonic() + seconds
    limits = httpx.Timeout(CASE_S)
    with httpx.Client(base_url=url, trust_env=False, timeout=limits) as client, ThreadPoolExecutor(at_once) as pool:
        sending = [
            pool.submit(_send, client, tally, random.Random(seed * 1000 + place), ends) for place in range(at_once)
        ]
        for one in sending:
            one.result(seconds + 2 * CASE_S)
    return tally


def engine_deaths(system: System) -> int:
    """Worker processes that ended, and engines that were given up, since the start."""
    given_up = sum(
        member.log.read_text(encoding="utf-8", errors="replace").count("engine_died") for member in system.workers()
    )
    return sum(len(member.deaths) for member in system.workers()) + given_up


def _send(client: httpx.Client, tally: Tally, chance: random.Random, ends: float) -> None:
    while time.monotonic() < ends:
        path, body = made_up(chance)
        raw = json.dumps(body).encode()  # half surrogates are escaped, as a careless client would
        began = time.monotonic()
        try:
            outcome, why = _one(client, path, raw, body)
        except httpx.HTTPError as error:
            outcome, why = "no_answer", f"{type(error).__name__}: {error}"
        tally.note(outcome, time.monotonic() - began, path, body, why)


def _one(client: httpx.Client, path: str, raw: bytes, body: Body) -> tuple[str, str]:
    """What became of one request, and why that is a failure, if it is one."""
    answer = client.post(path, content=raw, headers={"Content-Type": "application/json"})
    if answer.status_code >= 500:
        return "5xx", f"{answer.status_code}: {answer.text[:200]}"
    if answer.status_code >= 400:
        return "refused", ""
    if path == "/v1/jobs":
        return _job(client, answer.json()["id"], body)
    if body.get("stream"):
        return _stream(answer.text)
    choice = answer.json()["choices"][0]
    return _judged(choice["message"]["content"], choice["finish_reason"], body, _schema_of(body))


def _job(client: httpx.Client, job_id: str, body: Body) -> tuple[str, str]:
    deadline = time.monotonic() + CASE_S
    while time.monotonic() < deadline:
        job = client.get(f"/v1/jobs/{job_id}", params={"wait": 10}).json()
        if job["status"] == "succeeded":
            return _judged(job["result"]["text"], job["result"]["finish_reason"], body, body.get("json_schema"))
        if job["status"] == "failed":
            failure = job["failure"]
            fault = failure["kind"] not in OWN_FAULTS
            return ("5xx", f"{failure['kind']}: {failure['message'][:200]}") if fault else ("refused", "")
        if job["status"] == "cancelled":
            return "5xx", "the job was cancelled"
    return "no_answer", f"job {job_id} did not end within {CASE_S:g} s"


def _stream(text: str) -> tuple[str, str]:
    for document in _documents(text):
        if error := document.get("error"):
            ours = error["type"] == "server_error"
            return ("5xx", f"in a stream: {error['message'][:200]}") if ours else ("refused", "")
    return "answered", ""


def _documents(stream: str) -> Iterator[dict[str, Any]]:
    for line in stream.splitlines():
        if line.startswith("data: {"):
            yield json.loads(line.removeprefix("data: "))


def _schema_of(body: Body) -> Body | None:
    wanted = body.get("response_format")
    if wanted is None:
        return None
    schema: Body = wanted["json_schema"]["schema"] if wanted["type"] == "json_schema" else wanted.get("schema", {})
    return schema


def _judged(text: str, finish_reason: str, body: Body, schema: Body | None) -> tuple[str, str]:
    """An answer that the model ended itself must be in its form; a stop string may have cut it."""
    if schema is None or finish_reason != "stop" or body.get("stop"):
        return "answered", ""
    try:
        value = json.loads(text)
    except ValueError as error:
        return "wrong_form", f"no JSON ({error}): {text[:200]!r}"
    wrong = next(JUDGE(schema).iter_errors(value), None)
    return ("answered", "") if wrong is None else ("wrong_form", f"{wrong.message[:200]} in {text[:200]!r}")


if __name__ == "__main__":
    sys.exit(main())
