"""`make fuzz`: made-up requests to the gateway, as many as its own OpenAPI document lets schemathesis think of.

    python -m experiments.fuzz [--cases 5000]

A real gateway on a real Redis, with workers around stand-in engines. A case fails if the answer is a server error
or is not as the document says: its status, its content type, its schema.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx

from experiments.chaos.system import System, running

CHECKS = ("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance")
#: Longest waits that a made-up request may ask for, so that none holds the run up.
SHORT_WAITS = {"FIRSTDRAFT_GATEWAY__MAX_WAIT_S": "0.1", "FIRSTDRAFT_GATEWAY__MAX_ANSWER_S": "5"}
#: Made-up jobs that would not end, or whose tokens would take long, must not fill the system for the next.
SHORT_JOBS = {"FIRSTDRAFT_REQUESTS__DEADLINE_S": "5"}
#: Methods of operations in an OpenAPI document.
METHODS = {"get", "post", "put", "patch", "delete"}


def main() -> int:
    """Run schemathesis, print its report and one JSON document; answers 1 if a case failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=5000, help="at least so many")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="firstdraft-fuzz-") as name:
        folder = Path(name)
        with running(folder, **SHORT_WAITS, **SHORT_JOBS) as system:
            for tier in ("edge", "cloud"):
                system.add_worker(tier, tier)
            system.wait_until_ready()
            status, cases = 0, 0
            seed = arguments.seed
            while cases < arguments.cases and status == 0:
                status, num = _run(system, folder, arguments.cases - cases, seed)
                cases += num
                seed += 1
            survived = system.status("/healthz") == httpx.codes.OK and not system.members["gateway"].deaths
    figures = {"cases": cases, "failed": int(status != 0), "gateway_survived": survived}
    print(json.dumps({"bench": "fuzz", "figures": figures}))
    return 0 if status == 0 and survived else 1


def _run(system: System, folder: Path, cases: int, seed: int) -> tuple[int, int]:
    """Schemathesis's exit status, and how many cases it tried."""
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
        # A WebSocket is no HTTP; an event stream ends with its job.
        "--exclude-path=/v1/ws",
        "--request-timeout=30",
        "--continue-on-failure",
        "--no-color",
        "--warnings=off",
        f"--report-ndjson-path={report}",
    ]
    status = subprocess.run(command, cwd=folder, check=False).returncode  # noqa: S603 - our own command
    events = [json.loads(line) for line in report.read_text().splitlines()]
    return status, sum(len(_cases(event)) for event in events)


def _cases(event: dict[str, dict[str, dict[str, object]]]) -> dict[str, object]:
    """The cases of one finished scenario."""
    return event.get("ScenarioFinished", {}).get("recorder", {}).get("cases", {})  # type: ignore[return-value]


if __name__ == "__main__":
    sys.exit(main())
