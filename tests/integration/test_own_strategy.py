import subprocess
import sys
from pathlib import Path

import pytest

from config.environment import child_environment
from schemas.requests import ConfidenceRule
from schemas.results import FailureKind
from tests.own_strategies import write_package
from tests.processes import ROOT
from tests.samples import a_request
from workers.edge.confidence import MAX_STRATEGY_S

AT_THE_EDGE = """
from schemas.drafts import TokenFigures
from schemas.requests import ConfidenceRule
from workers.edge.confidence import assess
columns = {name: (0.8, 0.4) for name in TokenFigures.model_fields}
report = assess(TokenFigures(**columns), ConfidenceRule(strategy="cautious", threshold=0.25))
print(round(report.value, 6), report.sure)
"""
AT_THE_GATEWAY = """
from config.settings import read_settings
from gateway.jobs.request_validation import Admission
from schemas.requests import JobRequest
body = JobRequest(prompt="hi", confidence={"strategy": "ensemble", "weights": {"cautious": 1.0}})
print(Admission(read_settings()).accept(body, "id", 0.0).confidence.weights["cautious"])
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package that somebody else has installed."""
    folder = tmp_path / "package"
    folder.mkdir()
    return write_package(folder)


@pytest.fixture
def start_edge(start_worker, package):
    def start(**options):
        calls = package / "calls"
        calls.touch()
        return start_worker("edge", PYTHONPATH=str(package), STRATEGY_CALLS=str(calls), **options)

    return start


@pytest.fixture
def ask(worker_store):
    def submit(strategy):
        rule = ConfidenceRule(strategy=strategy, threshold=0.3)
        request = a_request().model_copy(update={"confidence": rule})
        worker_store.create(request)
        return request.request_id

    return submit


@pytest.mark.parametrize(("program", "answer"), [(AT_THE_EDGE, "0.3 True"), (AT_THE_GATEWAY, "1.0")])
def test_a_strategy_of_another_package_is_found_by_its_entry_point(package: Path, program: str, answer: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=child_environment(PYTHONPATH=str(package)),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.stdout.strip() == answer, done.stderr


def test_a_strategy_is_called_once_for_a_draft(start_edge, package, ask, ended):
    start_edge()
    assert ended(ask("counted")).result.confidence.parts == {"counted": pytest.approx(0.95)}
    assert (package / "calls").read_text() == "called\n"


@pytest.mark.parametrize(
    ("strategy", "reason"),
    [("broken", "no idea"), ("missing", "No module named 'no_such_module'"), ("wordy", "could not convert string")],
)
def test_a_strategy_that_fails_fails_its_own_request_alone(start_edge, ask, ended, strategy, reason):
    worker = start_edge()
    unfit, *others = [ask(name) for name in (strategy, "cautious", "margin")]
    failure = ended(unfit).failure
    assert failure.kind is FailureKind.ENGINE_ERROR
    assert f"confidence strategy '{strategy}' failed" in failure.message
    assert reason in failure.message
    assert [ended(other).result.confidence.sure for other in others] == [True, True]
    assert not worker.has_ended()


def test_a_strategy_that_hangs_fails_its_own_request_and_frees_its_place(start_edge, ask, ended):
    start_edge(capacity=1)
    stuck, other = ask("stuck"), ask("margin")
    failure = ended(stuck, within_s=MAX_STRATEGY_S + 20.0).failure
    assert failure.message == f"confidence strategy 'stuck' failed: it took more than {MAX_STRATEGY_S:g} s"
    assert ended(other).result.confidence.sure
