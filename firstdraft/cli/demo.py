"""`firstdraft demo`: a handful of prompts through the whole system, and how each was answered."""

from collections.abc import Sequence

from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from firstdraft.client.errors import Unreachable
from firstdraft.client.sync import Client
from schemas.results import Result

#: A small model is sure of some of these answers and unsure of others.
PROMPTS = (
    "What is the capital of France?",
    "What is 2 + 2?",
    "Explain in two sentences why the sky is blue.",
    "Name three things that are made of copper.",
    "Write one sentence about a lighthouse keeper who is afraid of the sea.",
)
#: The confidence threshold. With the demo's small model, most short drafts reach it.
THRESHOLD = 0.55
#: Tokens of each answer.
MAX_TOKENS = 64


def run_demo(base_url: str, console: Console, prompts: Sequence[str] = PROMPTS) -> list[Result]:
    """Submit all prompts at once, then show each answer. Blocks until all are done; raises `FirstdraftError`."""
    results = []
    try:
        with Client(base_url) as client:
            options = {"max_tokens": MAX_TOKENS, "confidence": {"threshold": THRESHOLD}}
            jobs = [client.submit(prompt, **options) for prompt in prompts]
            for prompt, job in zip(prompts, jobs, strict=True):
                results.append(client.result(job.id))
                console.print(_panel(prompt, results[-1]))
    except Unreachable as error:
        raise Unreachable(f"the gateway at {base_url} does not answer any more: {error}") from error
    at_edge = sum(result.tier == "edge" for result in results)
    console.print(f"{at_edge} of {len(results)} answers left from the edge, the others from the cloud.")
    return results


def _panel(prompt: str, result: Result) -> Panel:
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
