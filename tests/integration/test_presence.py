import pytest

from broker import keys
from broker.presence import Presence
from schemas.policy import Tier
from schemas.routing_decision import RoutingDecision, RoutingReason
from tests.polling import until
from tests.samples import a_request, a_worker_report


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
    presence.renew(a_worker_report("w1", in_flight=3, epoch="e2", reported_at_s=9e9))
    assert presence.live() == [a_worker_report("w1", in_flight=3, epoch="e2", reported_at_s=9e9)]


def test_a_worker_that_does_not_renew_its_report_is_gone_after_its_lease(redis_connection):
    presence = Presence(redis_connection, lease_s=0.3)
    presence.renew(a_worker_report("w1"))
    assert presence.live() == [a_worker_report("w1")]
    until(lambda: presence.live() == [], "the report lapses", within_s=2)


def test_a_worker_that_says_good_bye_is_gone_at_once(presence):
    presence.renew(a_worker_report("w1"))
    presence.renew(a_worker_report("w2"))
    presence.withdraw(a_worker_report("w1"))
    assert presence.live() == [a_worker_report("w2")]
    presence.withdraw(a_worker_report("w1"))
    assert presence.live() == [a_worker_report("w2")]


def test_a_worker_that_did_not_renew_its_life_is_retired_by_the_next_that_does_and_its_requests_wait_for_anybody(
    presence, redis_connection, store
):
    presence.renew(a_worker_report("w1"))
    route = RoutingDecision(worker="w1@e1", reason=RoutingReason.PREFIX, prompt_tokens=5, work_tokens=20)
    ids = [store.create(a_request(), route=route) for _ in range(3)]
    assert redis_connection.zcard(keys.line("edge@w1@e1")) == 3
    redis_connection.zadd(keys.workers(Tier.EDGE), {"w1@e1": 1.0})
    assert presence.renew(a_worker_report("w2")) == {"w1@e1": 3}
    assert redis_connection.zrange(keys.workers(Tier.EDGE), 0, -1) == [b"w2@e1"]
    assert [raw.decode() for raw in redis_connection.zrange(keys.line("edge"), 0, -1)] == ids
    assert not [field for field in redis_connection.hkeys(keys.load()) if b"w1" in field]
    assert [leased.lease.request_id for leased in store.take(Tier.EDGE, "w2@e1", room=5).requests] == ids


def test_of_a_worker_that_left_nothing_is_kept(presence, redis_connection):
    presence.renew(a_worker_report("w1"))
    presence.withdraw(a_worker_report("w1"))
    assert list(redis_connection.scan_iter("*")) == []
