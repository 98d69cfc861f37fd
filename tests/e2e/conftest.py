"""The whole system, as `firstdraft up` runs it, once for all tests that use it."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from schemas.events import Event, event_adapter
from schemas.jobs import Job
from schemas.results import Result
from tests.polling import until
from tests.processes import free_port, running

#: Seconds until both engines have started.
READY_S = 240.0
#: Seconds for one answer, on a busy machine.
ANSWER_S = 120.0


#: Seconds that one test may take with its fixtures: several engines may have to start, and compile, before it.
LIMIT_S = 900


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("e2e") is not None:
            item.add_marker(pytest.mark.timeout(LIMIT_S))


class System:
    """A running system, spoken to as a user would."""

    def __init__(self, base_url: str) -> None:
        self.client = httpx.Client(base_url=base_url, trust_env=False, timeout=ANSWER_S)

    def is_ready(self) -> bool:
        try:
            return self.client.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def submit(self, prompt: str, **options: object) -> str:
        answer = self.client.post("/v1/jobs", json={"prompt": prompt, "max_tokens": 32, **options})
        assert answer.status_code == 202, answer.text
        return answer.json()["id"]

    def job(self, job_id: str, wait_s: float = 0.0) -> Job:
        answer = self.client.get(f"/v1/jobs/{job_id}", params={"wait": wait_s})
        assert answer.status_code == 200, answer.text
        return Job.model_validate_json(answer.content)

    def result(self, job_id: str) -> Result:
        job = until(lambda: self._finished(job_id), f"an end of job {job_id}", within_s=ANSWER_S)
        assert job.result is not None, job
        return job.result

    def ask(self, prompt: str, **options: object) -> Result:
        return self.result(self.submit(prompt, **options))

    def events(self, job_id: str) -> list[Event]:
        text = self.client.get(f"/v1/jobs/{job_id}/events").text
        lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
        return [event_adapter.validate_python(json.loads(line)) for line in lines]

    def stats(self) -> dict:
        return self.client.get("/v1/stats").json()

    def _finished(self, job_id: str) -> Job | None:
        job = self.job(job_id, wait_s=10.0)
        return job if job.status in {"succeeded", "failed", "cancelled"} else None


@pytest.fixture(scope="session")
def system(tmp_path_factory: pytest.TempPathFactory, edge_model_path: Path, cloud_model_path: str) -> Iterator[System]:
    folder = tmp_path_factory.mktemp("system")
    port = str(free_port())
    environment = {
        "XDG_STATE_HOME": str(folder),
        "FIRSTDRAFT_GATEWAY__PORT": port,
        "FIRSTDRAFT_EDGE__MODEL__PATH": str(edge_model_path),
        "FIRSTDRAFT_CLOUD__MODEL__PATH": cloud_model_path,
    }
    with running("firstdraft.cli", "up", log=folder / "up.log", **environment) as process:
        started = System(f"http://127.0.0.1:{port}")
        until(lambda: process.said("Ctrl-C stops it") and started.is_ready(), "a ready system", within_s=READY_S)
        yield started
        started.client.close()
        process.signal(2)
        assert process.wait(15) == 0, process.log.read_text()[-3000:]
