import subprocess
import sys
from pathlib import Path

import pytest

from config.environment import child_environment
from tests.processes import ROOT

STRATEGY = "def cautious(figures):\n    return [p / 2 for p in figures.probability]\n"
ENTRY_POINTS = "[firstdraft.confidence_strategies]\ncautious = own_strategy:cautious\n"
METADATA = "Metadata-Version: 2.1\nName: own-strategy\nVersion: 1.0\n"
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
    (tmp_path / "own_strategy.py").write_text(STRATEGY)
    metadata = tmp_path / "own_strategy-1.0.dist-info"
    metadata.mkdir()
    (metadata / "entry_points.txt").write_text(ENTRY_POINTS)
    (metadata / "METADATA").write_text(METADATA)
    return tmp_path


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
