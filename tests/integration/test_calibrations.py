"""Calibrations and audits on a real Redis: versions, history, rollback, what is learnt in service."""

import pytest

from broker import keys
from broker.audits import AuditQueue
from broker.calibrations import HISTORY_ENTRIES, CalibrationStore, UnknownCalibration
from schemas.audits import Audit
from schemas.calibration import Label, Scope, Tally
from schemas.drift import DriftState
from schemas.requests import Message, Sampling
from tests.samples import a_calibration, a_draft, a_request

OTHER = Scope(edge_model="fake-small", cloud_model="fake-large", strategy="ensemble", traffic_class="code")


@pytest.fixture
def calibrations(redis_connection):
    return CalibrationStore(redis_connection)


def test_each_activation_is_a_version_and_scopes_are_apart(calibrations):
    assert calibrations.active() == []
    first = calibrations.activate(a_calibration())
    second = calibrations.activate(a_calibration(threshold=0.9))
    other = calibrations.activate(a_calibration(scope=OTHER, threshold=None))
    assert (first, second, other) == (1, 2, 3)
    assert [(each.version, each.threshold) for each in calibrations.active()] == [(2, 0.9), (3, None)]
    found = calibrations.read(1)
    assert (found.labels, found.frontier) == (a_calibration().labels, a_calibration().frontier)
    assert calibrations.read(9) is None
    assert [entry.version for entry in calibrations.history()] == [3, 2, 1]


def test_rolling_back_makes_the_one_before_active(calibrations):
    scope = a_calibration().scope
    for threshold in (0.7, 0.8, 0.9):
        calibrations.activate(a_calibration(threshold=threshold))
    assert calibrations.rollback(scope).threshold == 0.8
    assert calibrations.rollback(scope).threshold == 0.7
    assert calibrations.rollback(scope, 3).threshold == 0.9
    assert [each.version for each in calibrations.active()] == [3]
    assert calibrations.history(1)[0].reason == "rolled back to 3"
    with pytest.raises(UnknownCalibration, match="no calibration 9"):
        calibrations.rollback(scope, 9)
    with pytest.raises(UnknownCalibration, match="before"):
        calibrations.rollback(OTHER)


def test_what_happened_is_read_in_order_from_a_position(calibrations):
    digest = a_calibration().scope.digest
    label = Label(score=0.9, worse=True, worth=0.2, drawn=0.02, kept=True)
    calibrations.observe([(digest, Tally(kept=3, escalated=1)), (digest, label)])
    calibrations.observe([(digest, Tally(version=7, kept=9)), (digest, label.model_copy(update={"version": 7}))])
    first = calibrations.observations(a_calibration().scope, "0-0", 0)
    assert (first.tally, list(first.labels), first.more) == (Tally(kept=3, escalated=1), [label], False)
    calibrations.observe([(digest, Tally(kept=1)), (digest, Tally(escalated=2, stopped_early=1))])
    second = calibrations.observations(a_calibration().scope, first.position, 0)
    assert (second.tally, list(second.labels)) == (Tally(kept=1, escalated=2, stopped_early=1), [])
    assert calibrations.observations(a_calibration().scope, second.position, 0).position == second.position
    assert calibrations.labels_of(a_calibration().scope, 0) == [label]


def test_a_new_calibration_forgets_what_was_learnt_about_the_last(calibrations):
    calibration = a_calibration()
    calibrations.activate(calibration)
    calibrations.observe([(calibration.scope.digest, Label(score=0.9, worse=True, worth=0.0))])
    calibrations.save_drift(calibration.scope, DriftState(threshold=2.0, audit_share=0.3), "5-0")
    assert calibrations.drift_and_position(calibration.scope)[1] == "5-0"
    calibrations.activate(calibration, keep_labels=True)
    state, position = calibrations.drift_and_position(calibration.scope)
    assert state is None
    assert calibrations.observations(calibration.scope, position, 0).labels == []
    assert len(calibrations.labels_of(calibration.scope, 0)) == 1
    calibrations.activate(calibration)
    assert calibrations.labels_of(calibration.scope, 0) == []


def test_one_worker_at_a_time_keeps_watch(calibrations, redis_connection):
    assert calibrations.keep_watch("one")
    assert calibrations.keep_watch("one")
    assert not calibrations.keep_watch("other")
    redis_connection.delete(keys.drift_keeper())
    assert calibrations.keep_watch("other")


def test_superseded_calibrations_are_deleted_but_never_an_active_one(calibrations, redis_connection):
    calibrations.activate(a_calibration(scope=OTHER))
    for _ in range(HISTORY_ENTRIES + 5):
        calibrations.activate(a_calibration())
    assert len(calibrations.history(1000)) == HISTORY_ENTRIES
    assert {each.version for each in calibrations.active()} == {1, HISTORY_ENTRIES + 6}
    assert calibrations.read(2) is None
    stored = [key for key in redis_connection.scan_iter() if key.startswith(b"firstdraft:calibration:")]
    assert len(stored) == HISTORY_ENTRIES + 1


def an_audit(request_id):
    return Audit(
        request_id=request_id,
        messages=(Message(role="user", content="why"),),
        sampling=Sampling(),
        cache_namespace="owner:a",
        draft=a_draft(),
        drawn=0.02,
    )


def test_audits_are_taken_once_the_oldest_first(redis_connection):
    queue = AuditQueue(redis_connection, keep_s=60)
    for number in (2, 1):
        queue.add(an_audit(f"r{number}"), float(number))
    assert queue.take() == (an_audit("r1"), 1.0)
    queue.add(an_audit("r1"), 1.0)  # it had to give way
    assert [queue.take()[0].request_id, queue.take()[0].request_id] == ["r1", "r2"]
    assert queue.take() is None


def test_an_audit_ends_with_its_request(redis_connection, store):
    queue = AuditQueue(redis_connection, keep_s=60)
    request = a_request()
    store.create(request)
    queue.add(an_audit(request.request_id), 1.0)
    queue.add(an_audit("other"), 2.0)
    store.delete(request.request_id)
    assert queue.take()[0].request_id == "other"
    assert store.counters()["audits_dropped"] == 1
