import threading
from contextlib import ExitStack

from tests.polling import until
from workers.runtime.exclusive_access import SharedUses


def started(uses: SharedUses, alone: bool, inside: list[str], name: str, leave: threading.Event) -> threading.Thread:
    def use() -> None:
        with uses.sole() if alone else uses.shared():
            inside.append(name)
            leave.wait(10)
            inside.remove(name)

    thread = threading.Thread(target=use)
    thread.start()
    return thread


def test_many_share_and_one_alone_waits_for_them_and_goes_before_who_comes_later():
    uses, inside, leave_shared, leave_alone = SharedUses(), [], threading.Event(), threading.Event()
    shared = [started(uses, False, inside, f"shared{place}", leave_shared) for place in range(3)]
    until(lambda: len(inside) == 3, "three share")
    alone = started(uses, True, inside, "alone", leave_alone)
    until(lambda: uses._num_waiting_alone == 1, "one waits to be alone")
    late = started(uses, False, inside, "late", leave_shared)
    assert sorted(inside) == ["shared0", "shared1", "shared2"]
    leave_shared.set()
    until(lambda: inside == ["alone"], "it is alone")
    leave_alone.set()
    for thread in [*shared, alone, late]:
        thread.join(10)
    assert inside == []


def test_who_fails_alone_lets_the_next_in():
    uses = SharedUses()
    for alone in (True, False, True):
        with ExitStack() as stack:
            stack.enter_context(uses.sole() if alone else uses.shared())


def test_who_shares_its_sole_use_lets_others_in_and_keeps_the_next_from_being_alone():
    uses, inside, leave = SharedUses(), [], threading.Event()
    with uses.sole() as use:
        beside = started(uses, False, inside, "beside", leave)
        use.share()
        use.share()
        until(lambda: inside == ["beside"], "another is let in")
        alone = started(uses, True, inside, "alone", leave)
        until(lambda: uses._num_waiting_alone == 1, "one waits to be alone")
        assert inside == ["beside"]
        leave.set()
    for thread in (beside, alone):
        thread.join(10)
    with uses.sole():
        pass
