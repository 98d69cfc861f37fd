"""`make fuzz`: generated requests to the gateway, as many as schemathesis derives from its OpenAPI document.

    python -m experiments.fuzz [--cases 5000] [--seed 1]

A real gateway on a real Redis, with workers on fake engines. A case fails if the answer is a server error or does not
conform to the document in its status, its content type or its schema. 503 conforms: it is in the document.
"""

import json
import subprocess
import sys
from collections import Counter
from typing import Any

import httpx

from experiments.harness.report import parser, print_document
from experiments.harness.system import System, running_system

CHECKS = ("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance")
#: Limits of the gateway, so that no generated request can wait, run or occupy the workers for long.
LIMITS = {
    "FIRSTDRAFT_GATEWAY__MAX_WAIT_S": "0.1",
    "FIRSTDRAFT_GATEWAY__MAX_ANSWER_S": "5",
    "FIRSTDRAFT_REQUESTS__DEADLINE_S": "5",
}
#: Seconds that one run of schemathesis may take; it ends by itself long before.
RUN_S = 1800.0
#: Methods of operations in an OpenAPI document.
METHODS = {"get", "post", "put", "patch", "delete"}


def main() -> int:
    """Run schemathesis, print its report and one JSON document; the exit status is 1 if a case failed."""
    arguments = parser(__doc__)
    arguments.add_argument("--cases", type=int, default=5000, help="at least so many")
    arguments.add_argument("--seed", type=int, default=1)
    options = arguments.parse_args()
    total: Counter[str] = Counter()
    problems: list[str] = []
    with running_system(LIMITS) as system:
        for tier in ("edge", "cloud"):
            system.add_fake_worker(tier, tier)
        system.wait_until_ready()
        seed = options.seed
        while total["cases"] < options.cases and not problems:
            status, counts = _run_schemathesis(system, options.cases - total["cases"], seed)
            total += counts
            if status or not counts["cases"]:
                problems.append(f"schemathesis ended with {status} after {counts['cases']} cases, seed {seed}")
            seed += 1
        if system.status("/healthz") != httpx.codes.OK or system.processes["gateway"].deaths:
            problems.append("the gateway did not survive")
    if total["failed"] and not problems:
        problems.append(f"{total['failed']} cases failed")
    return print_document("fuzz", {name: total[name] for name in ("cases", "failed", "2xx", "4xx", "5xx")}, problems)


def _run_schemathesis(system: System, cases: int, seed: int) -> tuple[int, Counter[str]]:
    """Its exit status, and counts of cases, of those that failed, and of answers by their status."""
    document = httpx.get(f"{system.url}/openapi/openapi.json", trust_env=False).json()
    operations = sum(len(METHODS & methods.keys()) for methods in document["paths"].values())
    report = system.folder / f"report-{seed}.ndjson"
    command = [
        sys.executable,
        "-m",
        "schemathesis.cli",
        "run",
        f"{system.url}/openapi/openapi.json",
        f"--checks={','.join(CHECKS)}",
        f"--max-examples={max(1, cases // operations + 1)}",
        f"--seed={seed}",
        "--phases=examples,coverage,fuzzing,stateful",
        "--exclude-path=/v1/ws",  # a WebSocket is not described by OpenAPI
        "--request-timeout=30",
        "--continue-on-failure",
        "--no-color",
        "--warnings=off",
        f"--report-ndjson-path={report}",
    ]
    try:
        status = subprocess.run(command, cwd=system.folder, check=False, timeout=RUN_S).returncode  # noqa: S603
    except subprocess.TimeoutExpired:
        status = -1
    counts: Counter[str] = Counter()
    if report.exists():
        for line in report.read_text(encoding="utf-8").splitlines():
            counts += _counts_of(json.loads(line))
    return status, counts


def _counts_of(event: dict[str, Any]) -> Counter[str]:
    """The counts of one line of schemathesis's report; none if it is not about cases."""
    recorder = event.get("ScenarioFinished", {}).get("recorder", {})
    counts = Counter(cases=len(recorder.get("cases", {})))
    counts["failed"] = sum(
        any(check["status"] != "success" for check in checks) for checks in recorder.get("checks", {}).values()
    )
    for interaction in recorder.get("interactions", {}).values():
        if interaction["response"] is not None:
            counts[f"{interaction['response']['status_code'] // 100}xx"] += 1
    return counts


if __name__ == "__main__":
    sys.exit(main())
