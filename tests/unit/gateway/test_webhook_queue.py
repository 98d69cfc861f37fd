from collections import Counter
from dataclasses import dataclass
from itertools import count

from hypothesis import given
from hypothesis import strategies as st

from gateway.webhooks.queue import Limits, WebhookQueue

NUMBERS = count()


@dataclass(frozen=True)
class Due:
    """A webhook that is to be called."""

    request_id: str
    owner: str
    receiver: str


def a_due(owner="alice", receiver="a.example"):
    return Due(f"job-{next(NUMBERS)}", owner, receiver)


def all_begun(queue):
    begun = []
    while (due := queue.start_next()) is not None:
        begun.append(due)
    return begun


def test_a_receiver_that_never_answers_delays_its_own_alone():
    queue = WebhookQueue(Limits(in_flight=8, receiver_in_flight=2))
    slow, quick = [a_due(receiver="slow.example") for _ in range(20)], a_due(receiver="quick.example")
    for due in (*slow, quick):
        assert queue.put(due, 0.0)
    assert all_begun(queue) == [slow[0], quick, slow[1]]
    queue.ended(quick)
    queue.ended(slow[1])
    assert all_begun(queue) == [slow[2]]


def test_an_owners_many_receivers_delay_their_own_alone():
    queue = WebhookQueue(Limits(in_flight=8, owner_in_flight=3))
    alices = [a_due("alice", f"{number}.example") for number in range(20)]
    bobs = a_due("bob", "0.example")
    for due in (*alices, bobs):
        assert queue.put(due, 0.0)
    assert all_begun(queue) == [*alices[:3], bobs]


def test_what_waits_in_vain_is_given_back():
    queue = WebhookQueue(Limits(receiver_in_flight=1, waiting_s=10.0))
    first, second, third = a_due(), a_due(), a_due()
    assert all(queue.put(due, at) for due, at in ((first, 0.0), (second, 1.0), (third, 2.0)))
    assert all_begun(queue) == [first]
    assert queue.take_expired(10.9) == []
    assert queue.take_expired(11.0) == [second]
    queue.ended(first)
    assert all_begun(queue) == [third]
    queue.ended(third)
    assert (queue.num_in_flight, queue.take_expired(99.0)) == (0, [])


def test_no_more_are_held_than_may_be():
    queue = WebhookQueue(Limits(waiting=3, receiver_waiting=2))
    assert [queue.put(a_due(), 0.0) for _ in range(3)] == [True, True, False]
    assert [queue.put(a_due(receiver=f"{number}.example"), 0.0) for number in range(2)] == [True, False]
    assert not queue.has_room


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("wxyz")), max_size=60), st.randoms())
def test_each_is_begun_once_and_within_all_limits(wanted, chance):
    limits = Limits(in_flight=5, owner_in_flight=4, receiver_in_flight=2)
    queue = WebhookQueue(limits)
    asked = [a_due(owner, receiver) for owner, receiver in wanted]
    assert all(queue.put(due, 0.0) for due in asked)
    under_way, seen = [], []
    while len(seen) < len(asked) or under_way:
        begun = all_begun(queue)
        seen += begun
        under_way += begun
        assert under_way, "what waits and finds a place is begun"
        assert queue.num_in_flight == len(under_way) <= limits.in_flight
        assert max(Counter(due.owner for due in under_way).values()) <= limits.owner_in_flight
        assert max(Counter(due.receiver for due in under_way).values()) <= limits.receiver_in_flight
        queue.ended(under_way.pop(chance.randrange(len(under_way))))
    assert sorted(due.request_id for due in seen) == sorted(due.request_id for due in asked)
