from hypothesis import given
from hypothesis import strategies as st

from workers.runtime.prefix_ledger import NEVER_HELD_TOKENS, PrefixLedger


class Cache:
    """Holds so many of the first tokens of each conversation of alice's, and nothing of others."""

    def __init__(self) -> None:
        self.held: dict[tuple[int, ...], int] = {}

    def __call__(self, tokens, namespace) -> int:
        return self.held.get(tuple(tokens), len(tokens)) if namespace == "alice" else 0


def blocks(name: str, count: int) -> list[bytes]:
    return [f"{name}{number}".encode() for number in range(count)]


def tokens(name: int, count: int) -> tuple[int, ...]:
    return (name, *range(count - 1))


def account(most: int = 10) -> tuple[PrefixLedger, Cache]:
    cache = Cache()
    return PrefixLedger(cache, most), cache


def test_what_was_read_is_held_whole():
    held, _ = account()
    held.served(tokens(1, 100), blocks("a", 4), "alice")
    change = held.take_change()
    assert (set(change.held), change.gone) == (set(blocks("a", 4)), ())
    assert held.take_change().held == ()


def test_what_the_engine_holds_for_another_namespace_is_not_held():
    held, _ = account()
    held.served(tokens(1, 100), blocks("a", 4), "bob")
    assert held.take_change().held == ()


def test_a_template_s_last_tokens_are_never_asked_for():
    held, cache = account()
    cache.held[tokens(1, 100)] = 100 - NEVER_HELD_TOKENS
    held.served(tokens(1, 100), blocks("a", 4), "alice")
    assert len(held.blocks) == 4


def test_what_is_held_in_part_counts_by_its_share_rounded_down():
    held, cache = account()
    cache.held[tokens(1, 100)] = 60
    held.served(tokens(1, 100), blocks("a", 4), "alice")
    assert set(held.blocks) == set(blocks("a", 2))


def test_an_eviction_is_noticed_when_it_is_reviewed():
    held, cache = account()
    held.served(tokens(1, 100), blocks("a", 4), "alice")
    held.take_change()
    cache.held[tokens(1, 100)] = 25
    held.review(1)
    change = held.take_change()
    assert (change.held, set(change.gone)) == ((), set(blocks("a", 4)[1:]))


def test_a_shared_block_is_held_as_long_as_one_conversation_holds_it():
    held, cache = account()
    held.served(tokens(1, 100), [*blocks("s", 2), b"a"], "alice")
    held.served(tokens(2, 100), [*blocks("s", 2), b"b"], "alice")
    cache.held[tokens(1, 100)] = 0
    held.review(2)
    assert set(held.blocks) == {*blocks("s", 2), b"b"}
    assert len(held) == 1


def test_the_oldest_conversation_is_forgotten_where_there_are_too_many():
    held, _ = account(most=2)
    for number in range(3):
        held.served(tokens(number, 50), blocks(f"{number}-", 2), "alice")
    assert set(held.blocks) == {*blocks("1-", 2), *blocks("2-", 2)}


def test_what_came_and_went_between_two_looks_is_not_told():
    held, cache = account()
    held.served(tokens(1, 100), blocks("a", 4), "alice")
    cache.held[tokens(1, 100)] = 0
    held.review(1)
    change = held.take_change()
    assert (change.held, change.gone) == ((), ())


@given(
    st.lists(
        st.tuples(st.sampled_from("srt"), st.integers(0, 5), st.integers(0, 64)),
        max_size=40,
    )
)
def test_the_changes_told_add_up_to_what_is_held(steps):
    held, cache = account(most=3)
    told: set[bytes] = set()
    for kind, name, count in steps:
        if kind == "s":
            held.served(tokens(name, 64), [*blocks("shared", 2), *blocks(f"{name}-", 2)], "alice")
        elif kind == "r":
            cache.held[tokens(name, 64)] = count
            held.review(2)
        else:
            change = held.take_change()
            assert told.isdisjoint(change.held)
            assert told.issuperset(change.gone)
            told = told.union(change.held).difference(change.gone)
    change = held.take_change()
    assert told.union(change.held).difference(change.gone) == set(held.blocks)
