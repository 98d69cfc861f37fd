"""A calibration as workers use it: taken up while they run, named in answers, audited, withdrawn when it is broken."""

import pytest

from broker.calibrations import CalibrationStore
from quality.drift import FIRST_LOOK
from schemas.policy import Tier
from tests.polling import until
from tests.samples import a_calibration, a_request

#: Every kept draft is audited.
ALL_AUDITED = {"FIRSTDRAFT_QUALITY__AUDITS__SHARE": "1.0"}


@pytest.fixture
def calibrations(redis_connection):
    return CalibrationStore(redis_connection)


@pytest.fixture
def ask(worker_store, ended):
    def answered(prompt="one two", **body):
        request = a_request(prompt, max_tokens=3, **body)
        worker_store.create(request)
        return ended(request.request_id).result

    return answered


def in_use(worker, version):
    until(lambda: worker.said(f"calibration_in_use version={version} "), "the calibration is taken up")


def test_a_calibration_is_taken_up_and_named_in_answers(start_worker, calibrations, ask):
    edge, _ = start_worker("edge"), start_worker("cloud")
    until(lambda: edge.said("confidence_uncalibrated"), "the edge says that it is uncalibrated")
    before = ask().confidence
    assert (before.calibration, before.probability) == (None, None)
    version = calibrations.activate(a_calibration())
    in_use(edge, version)
    kept = ask()
    assert (kept.tier, kept.confidence.calibration, kept.confidence.threshold) == (Tier.EDGE, version, 0.8)
    assert kept.confidence.probability == pytest.approx(0.86)
    assert kept.confidence.parts.keys() == {"max_prob"}
    assert ask("unsure").tier == Tier.CLOUD
    assert ask(confidence={"max_risk": 0.001}).tier == Tier.CLOUD
    assert ask("unsure", confidence={"threshold": 0.05}).tier == Tier.EDGE
    calibrations.activate(a_calibration(threshold=None))
    in_use(edge, version + 1)
    answer = ask()
    assert (answer.tier, answer.draft.escalated_early) == (Tier.CLOUD, False)


def test_a_risk_without_a_calibration_keeps_nothing(start_worker, ask):
    start_worker("edge")
    start_worker("cloud")
    assert ask(confidence={"max_risk": 0.9}).tier == Tier.CLOUD


def test_kept_drafts_are_audited_and_escalated_ones_label_themselves(start_worker, calibrations, ask):
    edge = start_worker("edge", **ALL_AUDITED)
    cloud = start_worker("cloud", **ALL_AUDITED)
    calibration = a_calibration()
    version = calibrations.activate(calibration)
    in_use(edge, version)
    in_use(cloud, version)
    ask("one two")
    ask("mistaken two")
    ask("unsure two")
    ask("unsure mistaken")
    ask("one", temperature=1.0)  # counts, but neither is audited
    ask("one", confidence={"threshold": 0.0})  # was not decided by the calibration
    until(lambda: len(calibrations.labels_of(calibration.scope, version)) == 4, "all four labels are there")
    labels = sorted((label.kept, label.worse) for label in calibrations.labels_of(calibration.scope, version))
    assert labels == [(False, False), (False, True), (True, False), (True, True)]
    drift = calibrations.drift

    def counted():
        state = drift(calibration.scope)
        return state is not None and (state.answers, state.kept, state.audits, state.worse, state.labels)

    until(lambda: counted() == (5, 3, 2, 1, 4), "the keeper has counted them")


def test_a_broken_promise_keeps_nothing_until_labels_allow_it(start_worker, calibrations, worker_store, ended):
    edge, cloud = start_worker("edge", **ALL_AUDITED), start_worker("cloud", **ALL_AUDITED)
    calibration = a_calibration()
    version = calibrations.activate(calibration)
    in_use(edge, version)
    in_use(cloud, version)

    def ask_many(prompt, number):
        requests = [a_request(f"{prompt} {index}", max_tokens=2) for index in range(number)]
        for request in requests:
            worker_store.create(request)
        return [ended(request.request_id).result for request in requests]

    ask_many("mistaken", 80)
    until(lambda: edge.said("calibration_raised") or cloud.said("calibration_raised"), "the promise is found broken")

    def kept_nothing():
        state = calibrations.drift(calibration.scope)
        return state is not None and state.broken_at_s is not None and ask_many("one", 1)[0].tier == Tier.CLOUD

    until(kept_nothing, "no draft is kept")
    answers = ask_many("fine", FIRST_LOOK + 20)
    assert answers[-1].tier == Tier.CLOUD
    until(lambda: calibrations.history(1)[0].version > version, "there is a new calibration")
    (after,) = calibrations.active()
    assert after.reason.startswith("refitted from")
    assert after.threshold == pytest.approx(0.95)
    in_use(edge, after.version)
    assert ask_many("fine", 1)[0].tier == Tier.EDGE
    counters = worker_store.counters()
    assert counters["calibration_raised"] == 1
    assert counters["calibration_refit_due"] >= 1
