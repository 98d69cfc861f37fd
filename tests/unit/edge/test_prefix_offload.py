from hypothesis import given
from hypothesis import strategies as st

from workers.edge.prefix_offload import OffloadedPrefixes

#: Few tokens, so that prefixes are shared often.
token_lists = st.lists(st.integers(0, 2), min_size=1, max_size=8)
namespaces = st.sampled_from(["alice", "bob"])


def reading(tokens):
    """A state that can be checked: the tokens themselves."""
    return lambda start: bytearray(tokens[start:])


def found(parked, tokens, namespace="alice"):
    """The tokens of the pieces that make up the longest prefix."""
    pieces = parked.find(namespace, tokens)
    return [token for piece in pieces for token in piece.segment.state[: piece.end - piece.segment.start]]


def park(parked, tokens, namespace="alice"):
    parked.park(namespace, tokens, reading(tokens))


def lengths(parked, prompts, namespace="alice"):
    return [parked.match_length(namespace, tokens) for tokens in prompts]


@given(st.lists(st.tuples(st.sampled_from(["park", "find"]), namespaces, token_lists)), st.integers(1, 30))
def test_what_is_found_is_what_was_parked_and_never_more_than_there_is_room_for(actions, room):
    parked = OffloadedPrefixes(room)
    for action, namespace, tokens in actions:
        length = parked.match_length(namespace, tokens)
        if action == "park":
            park(parked, tokens, namespace)
            # What rests on another may find no room beside the whole of it.
            least = len(tokens) if length == 0 and len(tokens) <= room else length
            assert parked.match_length(namespace, tokens) >= least
        else:
            assert found(parked, tokens, namespace) == tokens[:length]
        segments = list(parked)
        assert sum(len(segment.tokens) for segment in segments) == parked.num_tokens <= room
        assert sum(len(segment.state) for segment in segments) == parked.num_bytes
        places = {segment.number: place for place, segment in enumerate(segments)}
        for segment in segments:
            assert segment.parent is None or places[segment.parent.number] > places[segment.number]
            assert parked.tokens_of(segment)[segment.start :] == segment.tokens
            assert segment.parent is None or parked.namespace_of(segment.parent) == parked.namespace_of(segment)


@given(st.lists(st.tuples(namespaces, token_lists)))
def test_whatever_others_park_a_namespace_finds_what_it_would_find_alone(parkings):
    shared, alone = OffloadedPrefixes(1_000), OffloadedPrefixes(1_000)
    for namespace, tokens in parkings:
        park(shared, tokens, namespace)
        if namespace == "alice":
            park(alone, tokens)
    probes = [tokens for _, tokens in parkings]
    assert lengths(shared, probes) == lengths(alone, probes)
    assert [found(shared, tokens) for tokens in probes] == [found(alone, tokens) for tokens in probes]


def test_what_two_prefixes_begin_with_is_kept_once():
    parked = OffloadedPrefixes(100)
    park(parked, [1, 2, 3, 4])
    park(parked, [1, 2, 5])
    park(parked, [1, 2, 5, 6])
    assert sorted(bytes(segment.state) for segment in parked) == [b"\1\2\3\4", b"\5", b"\6"]


def test_the_least_recently_used_goes_first_but_nothing_that_others_rest_on():
    parked = OffloadedPrefixes(6)
    park(parked, [1, 1])
    park(parked, [2, 2])
    park(parked, [1, 1, 1])
    park(parked, [3, 3])
    assert lengths(parked, [[token] * 3 for token in (1, 2, 3)]) == [3, 0, 2]
    park(parked, [4])
    assert lengths(parked, [[token] * 3 for token in (1, 3, 4)]) == [3, 2, 1]
    park(parked, [5])
    assert lengths(parked, [[token] * 3 for token in (1, 3, 4, 5)]) == [2, 2, 1, 1]
    assert parked.evictions == 2


def test_what_could_not_be_read_is_not_kept():
    parked = OffloadedPrefixes(10)
    parked.park("alice", [1, 2], lambda _: bytearray())
    assert (len(parked), parked.num_tokens) == (0, 0)


def test_a_segment_is_taken_in_only_where_it_belongs():
    parked = OffloadedPrefixes(6)
    assert not parked.put("alice", 1, [1, 2], bytearray(b"x"))
    assert parked.put("alice", 0, [1, 2], bytearray(b"x"))
    assert not parked.put("alice", 1, [1, 3], bytearray(b"x")) or lengths(parked, [[1, 3]]) == [2]
    assert not parked.put("alice", 0, [1, 2, 3], bytearray(b"x"))
    assert not parked.put("alice", 2, [1, 2, 3, 4, 5, 6, 7], bytearray(b"x"))
    assert not parked.put("bob", 2, [1, 2, 3], bytearray(b"x"))
