"""`make fuzz`: made-up requests to the gateway, as many as its own OpenAPI document lets schemathesis think of.

    python -m experiments.fuzz [--cases 5000] [--seed 1]

A real gateway on a real Redis, with workers around stand-in engines. A case fails if the answer is a server error
or is not as the document says: its status, its content type, its schema. 503 is no failure: the document has it.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

from experiments.chaos.system import System, running

CHECKS = ("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance")
#: Longest waits that a made-up request may ask for, so that none holds the run up.
SHORT_WAITS = {"FIRSTDRAFT_GATEWAY__MAX_WAIT_S": "0.1", "FIRSTDRAFT_GATEWAY__MAX_ANSWER_S": "5"}
#: Made-up jobs that would not end, or whose tokens would take long, must not fill the system for the next.
SHORT_JOBS = {"FIRSTDRAFT_REQUESTS__DEADLINE_S": "5"}
#: Seconds that one run of schemathesis may take; it ends by itself long before.
RUN_S = 1800.0
#: Methods of operations in an OpenAPI document.
METHODS = {"get", "post", "put", "patch", "delete"}


def main() -> int:
    """Run schemathesis, print its report and one JSON document; answers 1 if a case failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=5000, help="at least so many")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    tried: Counter[str] = Counter()
    problems: list[str] = []
    with tempfile.TemporaryDirectory(prefix="firstdraft-fuzz-") as name:
        folder = Path(name)
        with running(folder, **SHORT_WAITS, **SHORT_JOBS) as system:
            for tier in ("edge", "cloud"):
                system.add_worker(tier, tier)
            system.wait_until_ready()
            seed = arguments.seed
            while tried["cases"] < arguments.cases and not problems:
                status, found = _run(system, folder, arguments.cases - tried["cases"], seed)
                tried += found
                if status or not found["cases"]:
                    problems.append(f"schemathesis ended with {status} after {found['cases']} cases, seed {seed}")
                seed += 1
            if system.status("/healthz") != httpx.codes.OK or system.members["gateway"].deaths:
                problems.append("the gateway did not survive")
    figures = {name: tried[name] for name in ("cases", "failed", "2xx", "4xx", "5xx")}
    print(json.dumps({"bench": "fuzz", "figures": figures, "problems": problems}))
    return 1 if problems or tried["failed"] else 0


def _run(system: System, folder: Path, cases: int, seed: int) -> tuple[int, Counter[str]]:
    """Schemathesis's exit status, and how many cases it tried, how many failed, and what they were answered."""
    document = httpx.get(f"{system.url}/openapi/openapi.json", trust_env=False).json()
    operations = sum(len(METHODS & methods.keys()) for methods in document["paths"].values())
    report = folder / f"report-{seed}.ndjson"
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
        "--exclude-path=/v1/ws",  # a WebSocket is no plain HTTP
        "--request-timeout=30",
        "--continue-on-failure",
        "--no-color",
        "--warnings=off",
        f"--report-ndjson-path={report}",
    ]
    try:
        status = subprocess.run(command, cwd=folder, check=False, timeout=RUN_S).returncode  # noqa: S603 - our own
    except subprocess.TimeoutExpired:
        status = -1
    found: Counter[str] = Counter()
    if report.exists():
        for line in report.read_text(encoding="utf-8").splitlines():
            found += _counted(json.loads(line))
    return status, found


def _counted(event: dict[str, Any]) -> Counter[str]:
    """What one line of the report says, if it is about cases."""
    recorder = event.get("ScenarioFinished", {}).get("recorder", {})
    found = Counter(cases=len(recorder.get("cases", {})))
    found["failed"] = sum(
        any(check["status"] != "success" for check in checks) for checks in recorder.get("checks", {}).values()
    )
    for interaction in recorder.get("interactions", {}).values():
        if interaction["response"] is not None:
            found[f"{interaction['response']['status_code'] // 100}xx"] += 1
    return found


if __name__ == "__main__":
    sys.exit(main())
