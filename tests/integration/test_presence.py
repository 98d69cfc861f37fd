import pytest

from broker import keys
from broker.presence import Presence
from tests.polling import until
from tests.samples import a_worker_report


@pytest.fixture
def presence(redis_connection):
    return Presence(redis_connection, lease_s=30.0)


def test_nobody_is_there_at_first(presence):
    assert presence.live() == []


def test_live_workers_are_told_in_order_of_their_names(presence):
    presence.renew(a_worker_report("w2"))
    presence.renew(a_worker_report("w1"))
    assert presence.live() == [a_worker_report("w1"), a_worker_report("w2")]


def test_the_last_report_counts(presence):
    presence.renew(a_worker_report("w1"))
    presence.renew(a_worker_report("w1", in_flight=3, epoch="e2"))
    assert presence.live() == [a_worker_report("w1", in_flight=3, epoch="e2")]


def test_a_worker_that_does_not_renew_its_report_is_gone_after_its_lease(redis_connection):
    presence = Presence(redis_connection, lease_s=0.3)
    presence.renew(a_worker_report("w1"))
    assert presence.live() == [a_worker_report("w1")]
    until(lambda: presence.live() == [], "the report lapses", within_s=2)


def test_a_worker_that_says_good_bye_is_gone_at_once(presence):
    presence.renew(a_worker_report("w1"))
    presence.renew(a_worker_report("w2"))
    presence.withdraw("w1")
    assert presence.live() == [a_worker_report("w2")]
    presence.withdraw("w1")
    assert presence.live() == [a_worker_report("w2")]


def test_the_index_forgets_workers_that_lapsed_long_ago(redis_connection):
    presence = Presence(redis_connection, lease_s=0.05)
    presence.renew(a_worker_report("w1"))

    def forgotten() -> bool:
        presence.renew(a_worker_report("w2"))
        return redis_connection.zscore(keys.workers(), "w1") is None

    assert until(forgotten, "the index forgets w1", within_s=2)


def test_everything_that_presence_writes_expires(presence, redis_connection):
    presence.renew(a_worker_report("w1"))
    assert all(redis_connection.ttl(name) > 0 for name in redis_connection.scan_iter("*"))
