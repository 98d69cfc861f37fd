import pickle

from hypothesis import given
from hypothesis import strategies as st

from workers.edge.radix_tree import RadixTree

#: Few tokens, so that prefixes are shared often.
token_lists = st.lists(st.integers(0, 2), min_size=1, max_size=8)
namespaces = st.sampled_from(["alice", "bob"])


def common_length(one, other):
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def all_prefixes(held):
    return {(whose, *tokens[: i + 1]) for whose, tokens in held.values() for i in range(len(tokens))}


@given(
    st.lists(st.tuples(st.sampled_from(["place", "remove"]), st.integers(0, 5), namespaces, token_lists)),
    namespaces,
    token_lists,
)
def test_the_tree_agrees_with_a_list_of_all_sequences_of_the_namespace(actions, asking, probe):
    tree, held = RadixTree(), {}
    for action, sequence, namespace, tokens in actions:
        if action == "place":
            tree.place(namespace, sequence, tokens)
            held[sequence] = (namespace, tokens)
        elif sequence in held:
            before = all_prefixes(held)
            del held[sequence]
            assert tree.remove(sequence) == len(before - all_prefixes(held))
        assert tree.num_tokens == len(all_prefixes(held))
    match = tree.match(asking, probe)
    own = [tokens for whose, tokens in held.values() if whose == asking]
    assert match.length == tree.match_length(asking, probe)
    assert match.length == max((common_length(probe, tokens) for tokens in own), default=0)
    if match.length:
        whose, tokens = held[match.sequence]
        assert (whose, tokens[: match.length]) == (asking, probe[: match.length])
    for sequence, (whose, tokens) in held.items():
        assert (tree.namespace_of(sequence), list(tree.tokens_of(sequence))) == (whose, tokens)


def test_an_empty_tree_matches_nothing():
    assert RadixTree().match("alice", [1, 2]).length == 0


def test_nothing_is_kept_of_namespaces_that_have_gone():
    tree, fresh = RadixTree(), RadixTree()
    for number in range(1_000):
        tree.place(f"owner:{number}", number % 2, [1, 2, 3])
    tree.remove(0)
    tree.remove(1)
    assert len(pickle.dumps(vars(tree))) == len(pickle.dumps(vars(fresh)))
