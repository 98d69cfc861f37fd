"""`firstdraft ablate`: the same prompts through several ways of running, against the running system.

Ways and what they override come from `experiments.ablations`. One untimed pass comes first, so that every way with
caches finds them equally warm.
"""

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx

from config.settings import AblationSettings
from firstdraft.cli.json_lines import json_lines
from schemas.jobs import Job
from schemas.policy import Tier
from schemas.requests import JobRequest
from schemas.results import Result

#: The settings that a request can carry, and where in its body they go. No other can change without a restart.
OVERRIDES = {
    "requests.policy": ("policy",),
    "edge.confidence.strategy": ("confidence", "strategy"),
    "edge.confidence.threshold": ("confidence", "threshold"),
    "edge.confidence.weights": ("confidence", "weights"),
    "edge.confidence.pooling": ("confidence", "pooling"),
    "edge.confidence.quantile": ("confidence", "quantile"),
    "cloud.draft_verifier.mode": ("acceptance", "mode"),
    "cloud.draft_verifier.acceptance_threshold": ("acceptance", "threshold"),
}
#: The policy of the untimed first pass: it uses both tiers and both caches.
WARM_UP = {"policy": "no_confidence"}
#: Seconds that one wait for a job may take; asked again until it has finished.
WAIT_S = 30


class AblationFailed(Exception):
    """The comparison cannot be made; the message says why."""


@dataclass(frozen=True)
class Measured:
    """One finished request, and the milliseconds from its submission until its answer was here."""

    result: Result
    latency_ms: float


@dataclass(frozen=True)
class Row:
    """One way of running, over all prompts."""

    name: str
    description: str
    requests: int
    mean_latency_ms: float
    p95_latency_ms: float
    requests_per_s: float
    #: Share answered at the edge.
    edge_share: float
    #: Accepted over drafted tokens of the drafts that were verified; absent where none was.
    acceptance_rate: float | None
    cloud_tokens_per_request: float
    #: Prompt tokens that each tier's KV cache spared, per request: 0 where caches are off.
    edge_cached_tokens_per_request: float
    cloud_cached_tokens_per_request: float


def read_prompts(path: Path) -> list[dict[str, Any]]:
    """The request bodies in a JSONL file, each checked. Raises `AblationFailed`, which names the line."""
    bodies: list[dict[str, Any]] = []
    for number, line in json_lines(path):
        try:
            body = json.loads(line)
            JobRequest.model_validate(body)
        except ValueError as error:  # no JSON, no UTF-8, or no request
            raise AblationFailed(f"{path}, line {number}: {error}") from error
        bodies.append(body)
    if not bodies:
        raise AblationFailed(f"{path} holds no prompt")
    return bodies


def body_for(body: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The request with an ablation's overrides in it. Raises `AblationFailed` for one that no request can carry."""
    changed = dict(body)
    for setting, value in overrides.items():
        if setting not in OVERRIDES:
            known = ", ".join(sorted(OVERRIDES))
            raise AblationFailed(f"config_overrides: {setting!r} needs a restart; an ablation may override {known}")
        *parents, last = OVERRIDES[setting]
        target = changed
        for parent in parents:
            target[parent] = dict(target.get(parent) or {})
            target = target[parent]
        target[last] = value
    return changed


def ablate(
    base_url: str,
    bodies: Sequence[Mapping[str, Any]],
    ablations: Iterable[AblationSettings],
    concurrency: int,
    say: Callable[[str], None],
) -> list[Row]:
    """Run every ablation in turn. Blocks; raises `AblationFailed` where a request gets no answer."""
    planned = [(way, [body_for(body, way.config_overrides) for body in bodies]) for way in ablations]
    rows = []
    with httpx.Client(base_url=base_url, trust_env=False, timeout=WAIT_S + 10) as client:
        say("warming up")
        _run_all(client, [{**body, **WARM_UP} for body in bodies], concurrency)
        for way, requests in planned:
            say(f"running {way.name}")
            began = time.perf_counter()
            measured = _run_all(client, requests, concurrency)
            rows.append(summary(way, measured, time.perf_counter() - began))
    return rows


def summary(way: AblationSettings, measured: Sequence[Measured], elapsed_s: float) -> Row:
    """One row of the table."""
    count = len(measured)
    latencies = sorted(m.latency_ms for m in measured)
    drafts = [m.result.draft for m in measured if m.result.draft is not None and m.result.draft.verified]
    drafted = sum(draft.drafted_tokens for draft in drafts)
    usages = [m.result.usage for m in measured]
    return Row(
        name=way.name,
        description=way.description,
        requests=count,
        mean_latency_ms=sum(latencies) / count,
        p95_latency_ms=latencies[math.ceil(0.95 * count) - 1],
        requests_per_s=count / elapsed_s,
        edge_share=sum(m.result.tier == Tier.EDGE for m in measured) / count,
        acceptance_rate=sum(draft.accepted_tokens for draft in drafts) / drafted if drafted else None,
        cloud_tokens_per_request=sum(usage.cloud_completion_tokens for usage in usages) / count,
        edge_cached_tokens_per_request=sum(usage.edge_cached_tokens for usage in usages) / count,
        cloud_cached_tokens_per_request=sum(usage.cloud_cached_tokens for usage in usages) / count,
    )


def as_json(rows: Sequence[Row]) -> str:
    """All rows as one JSON document on one line."""
    return json.dumps({"ablation": {row.name: asdict(row) for row in rows}})


def _run_all(client: httpx.Client, bodies: Sequence[Mapping[str, Any]], concurrency: int) -> list[Measured]:
    with ThreadPoolExecutor(concurrency) as pool:
        return list(pool.map(lambda body: _run_one(client, body), bodies))


def _run_one(client: httpx.Client, body: Mapping[str, Any]) -> Measured:
    began = time.perf_counter()
    try:
        answer = client.post("/v1/jobs", json=dict(body))
        if answer.status_code != httpx.codes.ACCEPTED:
            raise AblationFailed(f"the gateway refused a prompt: {answer.text}")
        location = answer.headers["Location"]
        while True:
            job = Job.model_validate_json(client.get(location, params={"wait": WAIT_S}).raise_for_status().content)
            if job.result is not None:
                return Measured(job.result, (time.perf_counter() - began) * 1000)
            if job.failure is not None:
                raise AblationFailed(f"job {job.id} failed: {job.failure.message}")
    except httpx.HTTPError as error:
        raise AblationFailed(f"{client.base_url}: {error}") from error
