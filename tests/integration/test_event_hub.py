import threading
import time

import pytest

from broker import keys
from broker.connection import connect
from broker.event_streams import BEGINNING, POLL_S, EventHub
from schemas.events import DraftText, EventKind
from schemas.policy import Tier
from tests.polling import until
from tests.samples import a_request, a_result


@pytest.fixture(scope="module")
def hub(redis_url):
    redis = connect(redis_url)
    hub = EventHub(redis)
    hub.loop.start()
    until(lambda: redis.pubsub_numsub(keys.notifications())[0][1] == 1, "the hub subscribes")
    yield hub
    hub.loop.close()
    redis.close()


@pytest.fixture
def lease(store):
    request = a_request()
    store.create(request)
    return store.begin(request.request_id, Tier.EDGE, "w1").lease


class Reader:
    """Follows a request on a thread of its own and remembers what it was told."""

    def __init__(self, hub, request_id, after=BEGINNING, within_s=10.0):
        self.told = []
        self._deadline = time.monotonic() + within_s
        self._thread = threading.Thread(target=self._follow, args=(hub, request_id, after))
        self._thread.start()

    def _follow(self, hub, request_id, after):
        for streamed in hub.follow(request_id, after, self._deadline):
            if streamed is not None:
                self.told.append(streamed)

    @property
    def kinds(self):
        return [streamed.event.type for streamed in self.told]

    def ended(self):
        self._thread.join(10)
        return not self._thread.is_alive()


def text(position, written):
    return DraftText(position=position, text=written)


def test_history_comes_first_and_then_what_happens(hub, store, lease):
    store.append(lease, [text(0, "one ")])
    reader = Reader(hub, lease.request_id)
    until(lambda: len(reader.told) == 2, "the history is told")
    store.append(lease, [text(4, "two")])
    until(lambda: len(reader.told) == 3, "what is new is told", within_s=POLL_S / 2)
    store.succeed(lease, a_result(), [])
    assert reader.ended()
    assert reader.kinds == [EventKind.QUEUED, EventKind.DRAFT, EventKind.DRAFT, EventKind.DONE]


def test_a_finished_request_is_told_whole_and_at_once(hub, store, lease):
    store.succeed(lease, a_result(), [text(0, "one")])
    told = list(hub.follow(lease.request_id, BEGINNING, time.monotonic() + 10))
    assert [streamed.event.type for streamed in told] == ["queued", "draft", "done"]


def test_a_reader_that_was_cut_off_goes_on_where_it_stopped(hub, store, lease):
    store.append(lease, [text(0, "one "), text(4, "two ")])
    store.succeed(lease, a_result(), [text(8, "three")])
    whole = hub.read(lease.request_id)
    for place, streamed in enumerate(whole[:-1]):
        rest = list(hub.follow(lease.request_id, streamed.position, time.monotonic() + 10))
        assert rest == whole[place + 1 :]


def test_two_readers_are_told_the_same(hub, store, lease):
    readers = [Reader(hub, lease.request_id) for _ in range(2)]
    store.append(lease, [text(0, "one")])
    store.succeed(lease, a_result(), [])
    assert all(reader.ended() for reader in readers)
    assert readers[0].told == readers[1].told
    assert readers[0].kinds[-1] == EventKind.DONE


def test_two_readers_of_two_requests_are_each_told_their_own(hub, store, lease):
    other = a_request()
    store.create(other)
    readers = Reader(hub, lease.request_id), Reader(hub, other.request_id)
    store.cancel(other.request_id)
    store.succeed(lease, a_result(), [])
    assert all(reader.ended() for reader in readers)
    assert (readers[0].kinds[-1], readers[1].kinds[-1]) == (EventKind.DONE, EventKind.CANCELLED)


def test_a_missed_notification_costs_one_poll_and_nothing_else(redis_connection, store, lease):
    deaf = EventHub(redis_connection)  # never subscribed
    reader = Reader(deaf, lease.request_id)
    until(lambda: len(reader.told) == 1, "the history is told")
    store.succeed(lease, a_result(), [])
    until(lambda: reader.kinds[-1] == EventKind.DONE, "the reader looks by itself", within_s=POLL_S + 1)
    assert reader.ended()


def test_a_hub_that_lost_its_subscription_takes_it_up_again(hub, redis_connection, store, lease):
    redis_connection.client_kill_filter(_type="pubsub")
    until(lambda: redis_connection.pubsub_numsub(keys.notifications())[0][1] == 1, "the hub subscribes again")
    reader = Reader(hub, lease.request_id)
    until(lambda: len(reader.told) == 1, "the history is told")
    store.append(lease, [text(0, "one")])
    until(lambda: len(reader.told) == 2, "what is new is told", within_s=POLL_S / 2)
    store.cancel(lease.request_id)
    assert reader.ended()


def test_a_quiet_request_gives_signs_of_life_until_the_deadline(hub, lease):
    signs = list(hub.follow(lease.request_id, hub.read(lease.request_id)[-1].position, time.monotonic() + POLL_S + 0.2))
    assert signs[0] is None
    assert set(signs) == {None}


def test_a_reader_of_a_request_that_has_expired_is_not_kept(hub, redis_connection, lease):
    reader = Reader(hub, lease.request_id, within_s=60)
    until(lambda: len(reader.told) == 1, "the history is told")
    redis_connection.delete(keys.events(lease.request_id))
    assert reader.ended()


def test_readers_that_left_are_forgotten(hub, store, lease):
    reader = Reader(hub, lease.request_id)
    until(lambda: lease.request_id in hub._subscriptions, "the reader waits")
    store.cancel(lease.request_id)
    assert reader.ended()
    assert hub._subscriptions == {}


def test_several_requests_are_followed_at_once_until_the_last_has_ended(hub, store):
    holds = []
    for _ in range(3):
        request = a_request()
        store.create(request)
        holds.append(store.begin(request.request_id, Tier.EDGE, "w1").lease)
    following = hub.follow_all(dict.fromkeys([lease.request_id for lease in holds], BEGINNING), time.monotonic() + 10)
    for lease in reversed(holds):
        store.succeed(lease, a_result(), [])
    ended = [told[0] for told in following if told is not None and told[1].event.type == EventKind.DONE]
    assert sorted(ended) == sorted(lease.request_id for lease in holds)
    assert hub._subscriptions == {}
