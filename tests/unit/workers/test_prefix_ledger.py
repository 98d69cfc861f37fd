from hypothesis import given
from hypothesis import strategies as st

from workers.runtime.prefix_ledger import NEVER_CACHED_TOKENS, PrefixLedger


class Cache:
    """Caches some of the first tokens of each conversation of alice's, and nothing of others."""

    def __init__(self) -> None:
        self.cached: dict[tuple[int, ...], int] = {}

    def __call__(self, tokens, namespace) -> int:
        return self.cached.get(tuple(tokens), len(tokens)) if namespace == "alice" else 0


def blocks(name: str, count: int) -> list[bytes]:
    return [f"{name}{number}".encode() for number in range(count)]


def tokens(name: int, count: int) -> tuple[int, ...]:
    return (name, *range(count - 1))


def ledger_of(most: int = 10) -> tuple[PrefixLedger, Cache]:
    cache = Cache()
    return PrefixLedger(cache, most), cache


def test_what_was_read_is_held_whole():
    ledger, _ = ledger_of()
    ledger.served(tokens(1, 100), blocks("a", 4), "alice")
    change = ledger.take_change()
    assert (set(change.added), change.removed) == (set(blocks("a", 4)), ())
    assert ledger.take_change().added == ()


def test_what_the_engine_holds_for_another_namespace_is_not_held():
    ledger, _ = ledger_of()
    ledger.served(tokens(1, 100), blocks("a", 4), "bob")
    assert ledger.take_change().added == ()


def test_a_template_s_last_tokens_are_never_asked_for():
    ledger, cache = ledger_of()
    cache.cached[tokens(1, 100)] = 100 - NEVER_CACHED_TOKENS
    ledger.served(tokens(1, 100), blocks("a", 4), "alice")
    assert len(ledger.blocks) == 4


def test_what_is_held_in_part_counts_by_its_share_rounded_down():
    ledger, cache = ledger_of()
    cache.cached[tokens(1, 100)] = 60
    ledger.served(tokens(1, 100), blocks("a", 4), "alice")
    assert set(ledger.blocks) == set(blocks("a", 2))


def test_an_eviction_is_noticed_when_it_is_reviewed():
    ledger, cache = ledger_of()
    ledger.served(tokens(1, 100), blocks("a", 4), "alice")
    ledger.take_change()
    cache.cached[tokens(1, 100)] = 25
    ledger.review(1)
    change = ledger.take_change()
    assert (change.added, set(change.removed)) == ((), set(blocks("a", 4)[1:]))


def test_a_shared_block_is_held_as_long_as_one_conversation_holds_it():
    ledger, cache = ledger_of()
    ledger.served(tokens(1, 100), [*blocks("s", 2), b"a"], "alice")
    ledger.served(tokens(2, 100), [*blocks("s", 2), b"b"], "alice")
    cache.cached[tokens(1, 100)] = 0
    ledger.review(2)
    assert set(ledger.blocks) == {*blocks("s", 2), b"b"}
    assert len(ledger) == 1


def test_the_oldest_conversation_is_forgotten_where_there_are_too_many():
    ledger, _ = ledger_of(most=2)
    for number in range(3):
        ledger.served(tokens(number, 50), blocks(f"{number}-", 2), "alice")
    assert set(ledger.blocks) == {*blocks("1-", 2), *blocks("2-", 2)}


def test_what_came_and_went_between_two_looks_is_not_told():
    ledger, cache = ledger_of()
    ledger.served(tokens(1, 100), blocks("a", 4), "alice")
    cache.cached[tokens(1, 100)] = 0
    ledger.review(1)
    change = ledger.take_change()
    assert (change.added, change.removed) == ((), ())


@given(
    st.lists(
        st.tuples(st.sampled_from("srt"), st.integers(0, 5), st.integers(0, 64)),
        max_size=40,
    )
)
def test_the_changes_told_add_up_to_what_is_held(steps):
    ledger, cache = ledger_of(most=3)
    told: set[bytes] = set()
    for kind, name, count in steps:
        if kind == "s":
            ledger.served(tokens(name, 64), [*blocks("shared", 2), *blocks(f"{name}-", 2)], "alice")
        elif kind == "r":
            cache.cached[tokens(name, 64)] = count
            ledger.review(2)
        else:
            change = ledger.take_change()
            assert told.isdisjoint(change.added)
            assert told.issuperset(change.removed)
            told = told.union(change.added).difference(change.removed)
    change = ledger.take_change()
    assert told.union(change.added).difference(change.removed) == set(ledger.blocks)
