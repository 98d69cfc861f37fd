import pytest

from workers.cloud.kv_block_index import Cleared, KVBlockIndex, Removed, Stored

FIRST = Stored((b"a", b"b"), None, (1, 2, 3, 4), 2, "alice")
NEXT = Stored((b"c",), b"b", (5, 6), 2)


def holding(*batches) -> KVBlockIndex:
    held = KVBlockIndex()
    for sequence, events in enumerate(batches):
        held.apply(sequence, events)
    return held


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ((1, 2, 3, 4, 5, 6, 7), 6),
        ((1, 2, 3, 4), 4),
        ((1, 2, 3), 2),
        ((1, 2, 9, 4), 2),
        ((3, 4), 0),
        ((), 0),
    ],
)
def test_a_prefix_is_held_as_far_as_its_full_blocks_are(tokens, expected):
    assert holding([FIRST], [NEXT]).prefix_tokens(tokens, "alice") == expected


def test_a_prefix_is_held_for_its_namespace_alone():
    his = Stored((b"x",), None, (1, 2), 2, "bob")
    held = holding([FIRST, NEXT, his, Stored((b"u",), None, (8, 9), 2)])
    told = {namespace: held.prefix_tokens((1, 2, 3, 4, 5, 6), namespace) for namespace in ("alice", "bob", "carol")}
    assert told == {"alice": 6, "bob": 2, "carol": 0}
    assert held.prefix_tokens((8, 9), "alice") == 0  # of no namespace


def test_a_removed_block_ends_the_prefix_and_is_an_eviction():
    held = holding([FIRST, NEXT], [Removed((b"b",))])
    assert held.prefix_tokens((1, 2, 3, 4, 5, 6), "alice") == 2
    assert (len(held), held.tokens, held.evictions) == (2, 4, 1)


def test_a_block_stored_again_is_held_again():
    held = holding([FIRST], [Removed((b"b",))], [Stored((b"b",), b"a", (3, 4), 2)])
    assert held.prefix_tokens((1, 2, 3, 4), "alice") == 4


def test_blocks_of_which_it_is_not_known_who_can_read_them_are_no_prefix():
    held = holding([Stored((b"a",), None, (1, 2), 2, "alice", private=True)])
    assert held.prefix_tokens((1, 2), "alice") == 0
    assert len(held) == 1


def test_clearing_voids_everything():
    held = holding([FIRST], [Cleared()])
    assert (held.prefix_tokens((1, 2), "alice"), len(held), held.generation) == (0, 0, 1)


def test_a_missing_number_voids_what_was_known_before():
    held = holding([FIRST])
    held.apply(2, [Stored((b"x",), None, (7, 8), 2, "alice")])
    assert held.prefix_tokens((1, 2), "alice") == 0
    assert held.prefix_tokens((7, 8), "alice") == 2
    assert (held.gaps, held.generation) == (1, 1)


def test_the_first_number_need_not_be_the_first_that_was_sent():
    held = KVBlockIndex()
    held.apply(5, [FIRST])
    held.apply(6, [NEXT])
    assert held.prefix_tokens((1, 2, 3, 4, 5, 6), "alice") == 6
    assert held.gaps == 1


def test_removing_what_is_not_known_does_no_harm():
    assert len(holding([Removed((b"z",))])) == 0
