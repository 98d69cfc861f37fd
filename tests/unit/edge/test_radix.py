from hypothesis import given
from hypothesis import strategies as st

from workers.edge.radix import RadixTree

#: Few tokens, so that prefixes are shared often.
token_lists = st.lists(st.integers(0, 2), min_size=1, max_size=8)


def common_length(one, other):
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def all_prefixes(held):
    return {tuple(tokens[: i + 1]) for tokens in held.values() for i in range(len(tokens))}


@given(st.lists(st.tuples(st.sampled_from(["place", "remove"]), st.integers(0, 5), token_lists)), token_lists)
def test_the_tree_agrees_with_a_list_of_all_sequences(actions, probe):
    tree, held = RadixTree(), {}
    for action, sequence, tokens in actions:
        if action == "place":
            tree.place(sequence, tokens)
            held[sequence] = tokens
        elif sequence in held:
            before = all_prefixes(held)
            del held[sequence]
            assert tree.remove(sequence) == len(before - all_prefixes(held))
        assert tree.num_tokens == len(all_prefixes(held))
    match = tree.match(probe)
    assert match.length == max((common_length(probe, tokens) for tokens in held.values()), default=0)
    if match.length:
        assert held[match.sequence][: match.length] == probe[: match.length]
    for sequence, tokens in held.items():
        assert list(tree.tokens_of(sequence)) == tokens


def test_an_empty_tree_matches_nothing():
    assert RadixTree().match([1, 2]).length == 0
