"""Audits run beside nothing, give way to requests, and label what was kept."""

from concurrent.futures import Future

import pytest

from config.settings import read_settings
from schemas.audits import Audit
from schemas.requests import Message, Sampling
from schemas.results import ConfidenceReport, DraftStatistics, FinishReason
from tests.samples import a_calibration, a_draft
from workers.cloud.answer_order import CloudAnswer
from workers.cloud.auditing import Auditing
from workers.cloud.labelling import label_of
from workers.runtime.calibrations import Active
from workers.runtime.failures import EngineDied, RequestCancelled, RequestRefused

REPORT = ConfidenceReport(value=0.9, threshold=0.8, strategy="ensemble", sure=True, calibration=3)
DRAFT = a_draft("Canberra").model_copy(update={"confidence": REPORT})


def an_answer(text="Canberra", **statistics):
    accepted = DraftStatistics(drafted_tokens=1, accepted_tokens=1, acceptance_rate=1.0, verified=True, lossless=True)
    return CloudAnswer(
        text=text,
        token_ids=(1,),
        finish_reason=FinishReason.STOP,
        prompt_tokens=3,
        cached_tokens=0,
        draft=accepted.model_copy(update=statistics),
    )


class MemoryQueue:
    def __init__(self, *names):
        self.waiting = [(an_audit(name), float(number)) for number, name in enumerate(names)]

    def take(self):
        return self.waiting.pop(0) if self.waiting else None

    def add(self, audit, drawn_at_s):
        self.waiting.insert(0, (audit, drawn_at_s))


class SlowEngine:
    """Answers when it is told to."""

    model_name = "fake-large"

    def __init__(self):
        self.asked = {}

    def submit(self, order, _listener=None):
        future = self.asked[order.request_id] = Future()
        return future

    def cancel(self, work_id):
        self.asked.pop(work_id).set_exception(RequestCancelled(work_id))


class KnownCalibration:
    def __init__(self):
        self.labels = []

    def any_of(self, _tier, model):
        return [Active(a_calibration(version=3), None)] if model == "fake-large" else []

    def of_version(self, version):
        return Active(a_calibration(version=3), None) if version == 3 else None

    def label(self, digest, label):
        self.labels.append((digest, label))


def an_audit(name):
    return Audit(
        request_id=name,
        messages=(Message(role="user", content="capital of Australia"),),
        sampling=Sampling(),
        cache_namespace="owner:a",
        draft=DRAFT,
        drawn=0.02,
    )


class Bench:
    def __init__(self, *names, **settings):
        self.queue, self.engine, self.calibrations, self.busy = MemoryQueue(*names), SlowEngine(), KnownCalibration(), 0
        chosen = read_settings().quality.audits.model_copy(update=settings)
        self.auditing = Auditing(
            self.engine, self.queue, self.calibrations, chosen, busy=lambda: self.busy, clock=lambda: 7.0
        )
        self.look = self.auditing._step


def test_an_audit_labels_the_draft_with_its_weight():
    bench = Bench("a")
    bench.look()
    bench.engine.asked["audit-a"].set_result(an_answer("Sydney"))
    ((digest, label),) = bench.calibrations.labels
    assert digest == a_calibration().scope.digest
    assert (label.worse, label.kept, label.drawn, label.score, label.at_s) == (True, True, 0.02, 0.9, 7.0)


def test_no_audit_begins_beside_requests():
    bench = Bench("a")
    bench.busy = 1
    bench.look()
    assert bench.engine.asked == {}
    assert len(bench.queue.waiting) == 1


def test_audits_give_way_to_a_request_and_come_back():
    bench = Bench("a", "b", "c", at_once=2)
    bench.look()
    assert list(bench.engine.asked) == ["audit-a", "audit-b"]
    bench.busy = 1
    bench.auditing.give_way()
    assert bench.engine.asked == {}
    assert sorted(audit.request_id for audit, _ in bench.queue.waiting) == ["a", "b", "c"]
    bench.busy = 0
    bench.look()
    assert len(bench.engine.asked) == 2


def test_audits_may_be_allowed_beside_some_requests():
    bench = Bench("a", max_busy=2)
    bench.busy = 2
    bench.look()
    bench.auditing.give_way()
    assert list(bench.engine.asked) == ["audit-a"]


def test_an_engine_that_dies_loses_no_audit_and_one_that_refuses_drops_it():
    bench = Bench("a", "b")
    bench.look()
    bench.engine.asked["audit-a"].set_exception(EngineDied("gone"))
    bench.engine.asked["audit-b"].set_exception(RequestRefused("unsupported_option", "no"))
    assert [audit.request_id for audit, _ in bench.queue.waiting] == ["a"]
    assert bench.calibrations.labels == []


def test_without_a_calibration_of_this_model_nothing_is_taken():
    bench = Bench("a")
    bench.engine.model_name = "another"
    bench.look()
    assert len(bench.queue.waiting) == 1


@pytest.mark.parametrize(("text", "worse"), [("Canberra", False), (" canberra.", False), ("Sydney", True), ("", True)])
def test_a_label_says_whether_the_cloud_says_the_same(text, worse):
    label = label_of(DRAFT, an_answer(text), "equal", kept=False, drawn=1.0, now_s=1.0)
    assert label.worse is worse


@pytest.mark.parametrize(
    ("draft", "answer"),
    [
        (DRAFT.model_copy(update={"escalated_early": True}), an_answer()),
        (DRAFT, an_answer(lossless=False)),
        (DRAFT.model_copy(update={"confidence": None}), an_answer()),
    ],
)
def test_an_answer_that_says_nothing_about_the_draft_is_no_label(draft, answer):
    assert label_of(draft, answer, "equal", kept=False, drawn=1.0, now_s=1.0) is None
