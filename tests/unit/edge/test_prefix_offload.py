from hypothesis import given
from hypothesis import strategies as st

from workers.edge.prefix_offload import OffloadedPrefixes

#: Few tokens, so that prefixes are shared often.
token_lists = st.lists(st.integers(0, 2), min_size=1, max_size=8)
namespaces = st.sampled_from(["alice", "bob"])


def reading(tokens):
    """A state that can be checked: the tokens themselves."""
    return lambda start: bytearray(tokens[start:])


def found(offloaded, tokens, namespace="alice"):
    """The tokens of the pieces that make up the longest prefix."""
    pieces = offloaded.find(namespace, tokens)
    return [token for piece in pieces for token in piece.segment.state[: piece.end - piece.segment.start]]


def offload(offloaded, tokens, namespace="alice"):
    offloaded.offload(namespace, tokens, reading(tokens))


def lengths(offloaded, prompts, namespace="alice"):
    return [offloaded.match_length(namespace, tokens) for tokens in prompts]


@given(st.lists(st.tuples(st.sampled_from(["offload", "find"]), namespaces, token_lists)), st.integers(1, 30))
def test_what_is_found_is_what_was_offloaded_and_never_more_than_there_is_room_for(actions, room):
    offloaded = OffloadedPrefixes(room)
    for action, namespace, tokens in actions:
        length = offloaded.match_length(namespace, tokens)
        if action == "offload":
            offload(offloaded, tokens, namespace)
            # What rests on another may find no room beside the whole of it.
            least = len(tokens) if length == 0 and len(tokens) <= room else length
            assert offloaded.match_length(namespace, tokens) >= least
        else:
            assert found(offloaded, tokens, namespace) == tokens[:length]
        segments = list(offloaded)
        assert sum(len(segment.tokens) for segment in segments) == offloaded.num_tokens <= room
        assert sum(len(segment.state) for segment in segments) == offloaded.num_bytes
        places = {segment.id: place for place, segment in enumerate(segments)}
        for segment in segments:
            assert segment.parent is None or places[segment.parent.id] > places[segment.id]
            assert offloaded.tokens_of(segment)[segment.start :] == segment.tokens
            assert segment.parent is None or offloaded.namespace_of(segment.parent) == offloaded.namespace_of(segment)


@given(st.lists(st.tuples(namespaces, token_lists)))
def test_whatever_others_offload_a_namespace_finds_what_it_would_find_alone(offloads):
    shared, alone = OffloadedPrefixes(1_000), OffloadedPrefixes(1_000)
    for namespace, tokens in offloads:
        offload(shared, tokens, namespace)
        if namespace == "alice":
            offload(alone, tokens)
    probes = [tokens for _, tokens in offloads]
    assert lengths(shared, probes) == lengths(alone, probes)
    assert [found(shared, tokens) for tokens in probes] == [found(alone, tokens) for tokens in probes]


def test_what_two_prefixes_begin_with_is_kept_once():
    offloaded = OffloadedPrefixes(100)
    offload(offloaded, [1, 2, 3, 4])
    offload(offloaded, [1, 2, 5])
    offload(offloaded, [1, 2, 5, 6])
    assert sorted(bytes(segment.state) for segment in offloaded) == [b"\1\2\3\4", b"\5", b"\6"]


def test_the_least_recently_used_goes_first_but_nothing_that_others_rest_on():
    offloaded = OffloadedPrefixes(6)
    offload(offloaded, [1, 1])
    offload(offloaded, [2, 2])
    offload(offloaded, [1, 1, 1])
    offload(offloaded, [3, 3])
    assert lengths(offloaded, [[token] * 3 for token in (1, 2, 3)]) == [3, 0, 2]
    offload(offloaded, [4])
    assert lengths(offloaded, [[token] * 3 for token in (1, 3, 4)]) == [3, 2, 1]
    offload(offloaded, [5])
    assert lengths(offloaded, [[token] * 3 for token in (1, 3, 4, 5)]) == [2, 2, 1, 1]
    assert offloaded.evictions == 2


def test_what_could_not_be_read_is_not_kept():
    offloaded = OffloadedPrefixes(10)
    offloaded.offload("alice", [1, 2], lambda _: bytearray())
    assert (len(offloaded), offloaded.num_tokens) == (0, 0)


def test_a_segment_is_taken_in_only_where_it_belongs():
    offloaded = OffloadedPrefixes(6)
    assert not offloaded.load("alice", 1, [1, 2], bytearray(b"x"))
    assert offloaded.load("alice", 0, [1, 2], bytearray(b"x"))
    assert not offloaded.load("alice", 1, [1, 3], bytearray(b"x")) or lengths(offloaded, [[1, 3]]) == [2]
    assert not offloaded.load("alice", 0, [1, 2, 3], bytearray(b"x"))
    assert not offloaded.load("alice", 2, [1, 2, 3, 4, 5, 6, 7], bytearray(b"x"))
    assert not offloaded.load("bob", 2, [1, 2, 3], bytearray(b"x"))
