import threading
from contextlib import ExitStack

from tests.polling import until
from workers.isolation import Isolation


def started(
    isolation: Isolation, alone: bool, inside: list[str], name: str, leave: threading.Event
) -> threading.Thread:
    def use() -> None:
        with isolation.using(alone=alone):
            inside.append(name)
            leave.wait(10)
            inside.remove(name)

    thread = threading.Thread(target=use)
    thread.start()
    return thread


def test_many_share_and_one_alone_waits_for_them_and_goes_before_who_comes_later():
    isolation, inside, leave_shared, leave_alone = Isolation(), [], threading.Event(), threading.Event()
    shared = [started(isolation, False, inside, f"shared{place}", leave_shared) for place in range(3)]
    until(lambda: len(inside) == 3, "three share")
    alone = started(isolation, True, inside, "alone", leave_alone)
    until(lambda: isolation._waiting_alone == 1, "one waits to be alone")
    late = started(isolation, False, inside, "late", leave_shared)
    assert sorted(inside) == ["shared0", "shared1", "shared2"]
    leave_shared.set()
    until(lambda: inside == ["alone"], "it is alone")
    leave_alone.set()
    for thread in [*shared, alone, late]:
        thread.join(10)
    assert inside == []


def test_who_fails_alone_lets_the_next_in():
    isolation = Isolation()
    for alone in (True, False, True):
        with ExitStack() as stack:
            stack.enter_context(isolation.using(alone=alone))
