"""`firstdraft demo`: a handful of real prompts through the whole system, and what became of each."""

from collections.abc import Sequence

import httpx
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from schemas.jobs import Job
from schemas.results import Result

#: Prompts of which a small model is sure of some and unsure of others.
PROMPTS = (
    "What is the capital of France?",
    "What is 2 + 2?",
    "Explain in two sentences why the sky is blue.",
    "Name three things that are made of copper.",
    "Write one sentence about a lighthouse keeper who is afraid of the sea.",
)
#: The confidence from which on a draft of the demo's small model is the answer: with it, most short ones are.
THRESHOLD = 0.55
#: Tokens of each answer.
MAX_TOKENS = 64
#: Seconds that one wait for a job may take; asked again until it has finished.
WAIT_S = 30


class DemoFailed(Exception):
    """A prompt got no answer; the message says why."""


def run_demo(base_url: str, console: Console, prompts: Sequence[str] = PROMPTS) -> list[Result]:
    """Submit every prompt, then show each answer. Blocks until all are done; raises `DemoFailed`."""
    try:
        with httpx.Client(base_url=base_url, trust_env=False, timeout=WAIT_S + 10) as client:
            results = _answers(client, console, prompts)
    except httpx.HTTPStatusError as error:
        answer = error.response
        raise DemoFailed(f"{error.request.url} answered {answer.status_code}: {answer.text}") from error
    except httpx.HTTPError as error:
        raise DemoFailed(f"the gateway at {base_url} does not answer any more: {error}") from error
    at_edge = sum(result.tier == "edge" for result in results)
    console.print(f"{at_edge} of {len(results)} answers left from the edge, the others from the cloud.")
    return results


def _answers(client: httpx.Client, console: Console, prompts: Sequence[str]) -> list[Result]:
    locations = [_submit(client, prompt) for prompt in prompts]
    results = []
    for prompt, location in zip(prompts, locations, strict=True):
        results.append(_wait(client, location))
        console.print(_shown(prompt, results[-1]))
    return results


def _submit(client: httpx.Client, prompt: str) -> str:
    body = {"prompt": prompt, "max_tokens": MAX_TOKENS, "confidence": {"threshold": THRESHOLD}}
    answer = client.post("/v1/jobs", json=body)
    answer.raise_for_status()
    return answer.headers["Location"]


def _wait(client: httpx.Client, location: str) -> Result:
    while True:
        answer = client.get(location, params={"wait": WAIT_S})
        answer.raise_for_status()
        job = Job.model_validate_json(answer.content)
        if job.result is not None:
            return job.result
        if job.failure is not None:
            raise DemoFailed(f"job {job.id} {job.status}: {job.failure.message}")


def _shown(prompt: str, result: Result) -> Panel:
    lines = Text(result.text.strip() + "\n\n")
    facts = {"answered by": str(result.tier)}
    if result.confidence is not None:
        facts["confidence"] = f"{result.confidence.value:.2f} (threshold {result.confidence.threshold:.2f})"
    if result.draft is not None:
        draft = result.draft
        facts["tokens"] = f"{draft.drafted_tokens} drafted"
        if draft.verified:
            facts["tokens"] += f", {draft.accepted_tokens} accepted, {draft.rewritten_tokens} rewritten"
            facts["tokens"] += f" in {draft.cloud_steps} cloud steps"
    times = result.timings
    facts["time"] = (
        f"queued {times.queued_ms + times.verify_queued_ms:.0f} ms, drafting {times.drafting_ms:.0f} ms, "
        f"verifying {times.verifying_ms:.0f} ms"
    )
    for name, fact in facts.items():
        lines.append(f"{name + ':':<13}", style="bold").append(fact + "\n")
    lines.rstrip()
    return Panel(lines, title=Text(prompt), title_align="left")
