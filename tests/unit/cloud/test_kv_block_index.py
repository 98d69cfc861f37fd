import pytest

from workers.cloud.kv_block_index import KVBlockIndex


def stored(hashes, parent, tokens, **private):
    return lambda index: index.store(hashes, parent, tokens, 2, **private)


def removed(*hashes):
    return lambda index: index.remove(hashes)


FIRST = stored((b"a", b"b"), "alice", (1, 2, 3, 4))
NEXT = stored((b"c",), b"b", (5, 6))


def apply(index, sequence, changes) -> None:
    index.begin_batch(sequence)
    for change in changes:
        change(index)


def holding(*batches) -> KVBlockIndex:
    held = KVBlockIndex()
    for sequence, changes in enumerate(batches):
        apply(held, sequence, changes)
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
    his = stored((b"x",), "bob", (1, 2))
    held = holding([FIRST, NEXT, his, stored((b"u",), None, (8, 9))])
    told = {namespace: held.prefix_tokens((1, 2, 3, 4, 5, 6), namespace) for namespace in ("alice", "bob", "carol")}
    assert told == {"alice": 6, "bob": 2, "carol": 0}
    assert held.prefix_tokens((8, 9), "alice") == 0  # of no namespace


def test_a_removed_block_ends_the_prefix_and_is_an_eviction():
    held = holding([FIRST, NEXT], [removed(b"b")])
    assert held.prefix_tokens((1, 2, 3, 4, 5, 6), "alice") == 2
    assert (len(held), held.tokens, held.evictions) == (2, 4, 1)


def test_a_block_stored_again_is_held_again():
    held = holding([FIRST], [removed(b"b")], [stored((b"b",), b"a", (3, 4))])
    assert held.prefix_tokens((1, 2, 3, 4), "alice") == 4


def test_blocks_of_which_it_is_not_known_who_can_read_them_are_no_prefix():
    held = holding([stored((b"a",), "alice", (1, 2), private=True)])
    assert held.prefix_tokens((1, 2), "alice") == 0
    assert len(held) == 1


def test_clearing_voids_everything():
    held = holding([FIRST], [KVBlockIndex.clear])
    assert (held.prefix_tokens((1, 2), "alice"), len(held), held.generation) == (0, 0, 1)


def test_a_missing_number_voids_what_was_known_before():
    held = holding([FIRST])
    apply(held, 2, [stored((b"x",), "alice", (7, 8))])
    assert held.prefix_tokens((1, 2), "alice") == 0
    assert held.prefix_tokens((7, 8), "alice") == 2
    assert held.generation == 1


def test_the_first_number_need_not_be_the_first_that_was_sent():
    held = KVBlockIndex()
    apply(held, 5, [FIRST])
    apply(held, 6, [NEXT])
    assert held.prefix_tokens((1, 2, 3, 4, 5, 6), "alice") == 6
    assert held.generation == 1


def test_removing_what_is_not_known_does_no_harm():
    assert len(holding([removed(b"z")])) == 0
