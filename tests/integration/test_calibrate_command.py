"""`firstdraft calibrate` and `firstdraft calibration`, from prompts to an active calibration."""

import json
import sys

import pytest
from click.testing import CliRunner

from firstdraft.cli import collected_answers, main
from gateway.monitoring import statistics
from schemas.calibration import Calibration
from tests.samples import a_calibration


def a_line(prompt, expected=None, **more):
    line = {"prompt": prompt, "max_tokens": 2, **more}
    return line if expected is None else {**line, "expected": expected}


#: 80 prompts: the drafts of 20 are unsure, and those are worse than the cloud's answers.
LINES = [a_line(f"fine {number}", str(number)) for number in range(60)] + [
    a_line(f"unsure mistaken {number}", "rather") for number in range(20)
]


@pytest.fixture
def run(system, tmp_path):
    def command(*arguments, lines=LINES, **options):
        path = tmp_path / "prompts.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        environment = {"FIRSTDRAFT_URL": system.url, "COLUMNS": "200"}
        return CliRunner().invoke(main, ["calibrate", str(path), *arguments], env=environment, **options)

    return command


def accepted(system):
    shown = CliRunner().invoke(main, ["stats", "--json"], env={"FIRSTDRAFT_URL": system.url})
    return json.loads(shown.output)["counters"]["accepted"]


def test_prompts_become_a_calibration_and_nothing_is_asked_twice(run, system, tmp_path):
    output = tmp_path / "calibration.json"
    done = run("--output", str(output))
    assert (done.exit_code, done.exception) == (0, None), done.output
    found = Calibration.model_validate_json(output.read_text())
    assert (found.scope.edge_model, found.scope.cloud_model) == ("fake-small", "fake-large")
    assert (len(found.labels), found.labelled_by, found.auroc) == (80, "expected", 1.0)
    assert sum(label.worse for label in found.labels) == 20
    assert found.threshold == pytest.approx(0.95)
    assert found.audit_risk == pytest.approx(found.frontier[0].bound)
    assert "keeps 75% of drafts" in done.output
    assert len(found.labels[0].parts) == 20
    before = accepted(system)
    answers = tmp_path / "prompts.jsonl.answers"
    answers.write_bytes(answers.read_bytes()[:-10])  # as if it had been killed while writing
    again = run("--cloud-share", "0.25", "--strategy", "fitted", "--output", str(output))
    assert again.exit_code == 0, again.output
    assert accepted(system) - before == 1
    fitted = Calibration.model_validate_json(output.read_text())
    assert fitted.goal.cloud_share == 0.25
    assert sum(fitted.weights.values()) == pytest.approx(1)


def test_prices_choose_a_threshold(run, tmp_path):
    output = tmp_path / "calibration.json"
    done = run("--cost", "edge=0,cloud=1,worse=0.1,per=second", "--output", str(output))
    assert done.exit_code == 0, done.output
    found = Calibration.model_validate_json(output.read_text())
    assert found.goal.prices.per == "second"
    assert run("--cost", "edge=0,cloud=x,worse=1").exit_code == 2
    assert run("--cost", "edge=0").exit_code == 2
    assert run("--cost", "edge=0,cloud=1,worse=1", "--max-risk", "0.1").exit_code == 2


def test_without_an_expected_answer_drafts_are_compared_with_the_clouds(run, tmp_path):
    output = tmp_path / "calibration.json"
    lines = [a_line(f"fine {n}") for n in range(40)] + [a_line(f"unsure mistaken {n}") for n in range(10)]
    done = run("--output", str(output), lines=lines)
    assert done.exit_code == 0, done.output
    found = Calibration.model_validate_json(output.read_text())
    assert (found.labelled_by, sum(label.worse for label in found.labels)) == ("verified", 10)
    assert "only 50 labels" in done.output


def test_confidence_that_cannot_tell_keeps_nothing(run):
    lines = [a_line(f"mistaken {n}" if n % 3 else f"fine {n}") for n in range(60)]
    done = run(lines=lines)
    assert done.exit_code == 0, done.output
    assert "Keeps nothing: the confidence cannot tell" in done.output


def test_a_class_has_its_own_lines(run, tmp_path):
    output = tmp_path / "calibration.json"
    lines = [*LINES[:50], *(a_line(f"fine {n}", str(n), traffic_class="code") for n in range(31))]
    assert run("--traffic-class", "code", "--output", str(output), lines=lines).exit_code == 0
    found = Calibration.model_validate_json(output.read_text())
    assert (found.scope.traffic_class, len(found.labels)) == ("code", 31)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (LINES[:10], "there are 10 labels"),
        ([*LINES[:50], a_line("x", "y", checker="oracle")], "checker 'oracle' is not installed"),
        ([*LINES[:50], a_line("x", checker="exact")], "line 51: checker needs expected"),
        ([*LINES[:50], ["x"]], "line 51: a line is a JSON object"),
        ([a_line(f"break {n}", "x") for n in range(40)], "only 0 of 40 prompts have two answers"),
    ],
)
def test_what_cannot_be_calibrated_is_said_in_a_line(run, lines, words):
    done = run(lines=lines)
    assert done.exit_code == 1
    assert words in done.output


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--strategy", "guess"), 1, "strategy 'guess' must be fitted, ensemble, or one of"),
        (("--audit-by", "same"), 1, "similarity rule 'same' must be"),
        (("--judge", "oracle"), 1, "judge 'oracle' is not installed"),
        (("--output", "/nowhere/calibration.json"), 2, "there is no folder /nowhere"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_asked(run, system, arguments, code, words):
    before = accepted(system)
    refused = run(*arguments)
    assert (refused.exit_code, accepted(system) - before) == (code, 0)
    assert words in refused.output


def test_the_cloud_judges_only_what_differs(run, system, tmp_path):
    output = tmp_path / "calibration.json"
    lines = [a_line(f"fine {n}") for n in range(40)] + [a_line(f"unsure mistaken {n}") for n in range(10)]
    before = accepted(system)
    done = run("--judge", "cloud", "--output", str(output), lines=lines)
    assert done.exit_code == 0, done.output
    assert accepted(system) - before == 2 * 50 + 10
    sources = [label.source for label in Calibration.model_validate_json(output.read_text()).labels]
    assert sources == ["verified"] * 40 + ["judged"] * 10
    assert run("--judge", "cloud", lines=lines).exit_code == 0
    assert accepted(system) - before == 2 * 50 + 10


def test_an_interrupted_run_says_how_to_go_on(run, system, monkeypatch, tmp_path):
    original, asked = collected_answers._ask, []

    def interrupting(*arguments):
        asked.append(arguments)
        if len(asked) == 20:
            raise KeyboardInterrupt
        return original(*arguments)

    before = accepted(system)
    monkeypatch.setattr(collected_answers, "_ask", interrupting)
    stopped = run("--concurrency", "1")
    assert stopped.exit_code == 1
    assert f"stopped; 19 answers are in {tmp_path / 'prompts.jsonl.answers'}" in stopped.output
    monkeypatch.setattr(collected_answers, "_ask", original)
    assert run().exit_code == 0
    assert accepted(system) - before == 2 * len(LINES)


def test_a_calibration_is_activated(run, calibration, redis_url, monkeypatch):
    monkeypatch.setenv("REDIS_URL", redis_url)  # not the running system's, which other tests use
    done = run("--activate")
    assert done.exit_code == 0, done.output
    assert "calibration 1 is active" in done.output
    assert run("--activate", "--cloud-share", "0.5").exit_code == 0
    assert [entry["version"] for entry in json.loads(calibration("history", "--json").output)] == [2, 1]
    assert calibration("rollback").output == "calibration 1 is active\n"


def test_single_failures_are_named_and_left_out(run):
    done = run(lines=[*LINES, a_line("break 1", "x")])
    assert done.exit_code == 0, done.output
    assert "line 81 has no answer" in done.output


def test_a_plot_needs_its_extra(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "firstdraft.local.calibration_plot", raising=False)
    done = run("--plot", str(tmp_path / "plot.svg"))
    assert done.exit_code == 1
    assert "pip install 'firstdraft[quality]'" in done.output
    assert run("--plot", str(tmp_path / "plot.gif")).exit_code == 2


def test_a_plot_is_drawn(run, tmp_path):
    pytest.importorskip("matplotlib")
    assert run("--plot", str(tmp_path / "plot.svg")).exit_code == 0
    drawn = (tmp_path / "plot.svg").read_text()
    assert "predicted: as good as the cloud" in drawn
    assert "80 labels" in drawn


@pytest.fixture
def calibration(redis_url, redis_connection, monkeypatch):  # noqa: ARG001 - flushed before each test
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *arguments: CliRunner().invoke(main, ["calibration", *arguments])


def test_calibrations_are_shown_exported_and_rolled_back(calibration, tmp_path):
    assert "uncalibrated" in calibration("show").output
    file = tmp_path / "one.json"
    file.write_text(a_calibration().model_dump_json(), encoding="utf-8")
    assert calibration("activate", str(file)).output == "calibration 1 is active\n"
    file.write_text(a_calibration(threshold=None).model_dump_json(), encoding="utf-8")
    assert calibration("activate", str(file)).output == "calibration 2 is active\n"
    assert "2: fake-small before fake-large, ensemble\n  Keeps nothing" in calibration("show").output
    assert calibration("rollback").output == "calibration 1 is active\n"
    (shown,) = json.loads(calibration("show", "--json").output)
    assert (shown["calibration"]["version"], shown["drift"]) == (1, None)
    assert [entry["version"] for entry in json.loads(calibration("history", "--json").output)] == [1, 2, 1]
    assert "rolled back to 1" in calibration("history").output
    exported = Calibration.model_validate_json(calibration("export", "1").output)
    assert exported.labels == a_calibration().labels
    for arguments, words in (
        (("export", "9"), "there is no calibration 9"),
        (("rollback", "--to", "9"), "there is no calibration 9"),
        (("rollback", "--version", "9"), "active: 1"),
        (("rollback",), "no calibration before"),
    ):
        refused = calibration(*arguments)
        assert refused.exit_code == 1
        assert words in refused.output
    file.write_text("{}", encoding="utf-8")
    assert "is no calibration" in calibration("activate", str(file)).output


def test_stats_say_which_calibration_is_active(make_services, redis_connection):
    services = make_services()
    services.calibrations.activate(a_calibration())
    (active,) = services.calibrations.active()
    report = statistics.system({}, {}, [], [statistics.calibration(active, None)])
    assert [(each.version, each.threshold, each.labels) for each in report.calibrations] == [(1, 0.8, 2)]
    assert redis_connection.exists("firstdraft:calibrations")
