import threading

from hypothesis import given
from hypothesis import strategies as st

from workers.runtime.slots import Slots


def test_there_is_room_for_as_many_as_the_capacity():
    slots = Slots(3)
    assert slots.wait_for_room(0) == 3
    for name in ("a", "b", "c"):
        slots.take(name)
    assert (slots.num_taken, slots.wait_for_room(0.01)) == (3, 0)
    slots.give_back("a")
    assert slots.wait_for_room(0) == 1


def test_who_waits_for_an_empty_worker_gets_no_room_beside_others():
    slots = Slots(3)
    slots.take("a")
    assert slots.wait_for_room(0.01, empty=True) == 0
    slots.give_back("a")
    assert slots.wait_for_room(0, empty=True) == 3


def test_whoever_is_alone_keeps_others_out_until_it_shares_or_ends():
    slots = Slots(3)
    slots.take("a", alone=True)
    assert slots.wait_for_room(0.01) == 0
    slots.share("a")
    slots.share("a")
    assert slots.wait_for_room(0) == 2
    slots.give_back("a")
    slots.take("b", alone=True)
    slots.share("a")
    assert slots.wait_for_room(0.01) == 0, "only who is alone can share"
    slots.give_back("b")
    assert slots.wait_for_room(0) == 3


def test_who_waits_for_room_is_woken_by_who_gives_a_place_back():
    slots = Slots(1)
    slots.take("a")
    timer = threading.Timer(0.05, slots.give_back, ["a"])
    timer.start()
    assert slots.wait_for_room(10) == 1
    timer.join(10)


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from(["take", "alone", "share", "give_back"]))))
def test_nobody_is_ever_beside_one_that_is_alone(steps):
    slots, taken, alone = Slots(3), set(), None
    for name, step in steps:
        if step in {"take", "alone"} and name not in taken and slots.wait_for_room(0, empty=step == "alone"):
            assert alone is None
            slots.take(name, alone=step == "alone")
            taken.add(name)
            alone = name if step == "alone" else None
        elif step == "share":
            slots.share(name)
            alone = None if alone == name else alone
        elif step == "give_back" and name in taken:
            slots.give_back(name)
            taken.discard(name)
            alone = None if alone == name else alone
        assert slots.wait_for_room(0) == (0 if alone else 3 - len(taken))
