from hypothesis import given
from hypothesis import strategies as st

from workers.edge.parked import ParkedPrefixes

#: Few tokens, so that prefixes are shared often.
token_lists = st.lists(st.integers(0, 2), min_size=1, max_size=8)


def reading(tokens):
    """A state that can be checked: the tokens themselves."""
    return lambda start: bytearray(tokens[start:])


def found(parked, tokens):
    """The tokens of the pieces that make up the longest prefix."""
    return [token for piece in parked.find(tokens) for token in piece.segment.state[: piece.end - piece.segment.start]]


def park(parked, tokens):
    parked.park(tokens, reading(tokens))


@given(st.lists(st.tuples(st.sampled_from(["park", "find"]), token_lists)), st.integers(1, 30))
def test_what_is_found_is_what_was_parked_and_never_more_than_there_is_room_for(actions, room):
    parked = ParkedPrefixes(room)
    for action, tokens in actions:
        length = parked.match_length(tokens)
        if action == "park":
            park(parked, tokens)
            # What rests on another may find no room beside the whole of it.
            assert parked.match_length(tokens) >= (len(tokens) if length == 0 and len(tokens) <= room else length)
        else:
            assert found(parked, tokens) == tokens[:length]
        segments = list(parked)
        assert sum(len(segment.tokens) for segment in segments) == parked.num_tokens <= room
        assert sum(len(segment.state) for segment in segments) == parked.num_bytes
        places = {segment.number: place for place, segment in enumerate(segments)}
        for segment in segments:
            assert segment.parent is None or places[segment.parent.number] > places[segment.number]
            assert parked.tokens_of(segment)[segment.start :] == segment.tokens


def test_what_two_prefixes_begin_with_is_kept_once():
    parked = ParkedPrefixes(100)
    park(parked, [1, 2, 3, 4])
    park(parked, [1, 2, 5])
    park(parked, [1, 2, 5, 6])
    assert sorted(bytes(segment.state) for segment in parked) == [b"\1\2\3\4", b"\5", b"\6"]


def test_the_least_recently_used_goes_first_but_nothing_that_others_rest_on():
    parked = ParkedPrefixes(6)
    park(parked, [1, 1])
    park(parked, [2, 2])
    park(parked, [1, 1, 1])
    park(parked, [3, 3])
    assert [parked.match_length([token] * 3) for token in (1, 2, 3)] == [3, 0, 2]
    park(parked, [4])
    assert [parked.match_length([token] * 3) for token in (1, 3, 4)] == [3, 2, 1]
    park(parked, [5])
    assert [parked.match_length([token] * 3) for token in (1, 3, 4, 5)] == [2, 2, 1, 1]
    assert parked.evictions == 2


def test_what_could_not_be_read_is_not_kept():
    parked = ParkedPrefixes(10)
    parked.park([1, 2], lambda _: bytearray())
    assert (len(parked), parked.num_tokens) == (0, 0)


def test_a_segment_is_taken_in_only_where_it_belongs():
    parked = ParkedPrefixes(6)
    assert not parked.put(1, [1, 2], bytearray(b"x"))
    assert parked.put(0, [1, 2], bytearray(b"x"))
    assert not parked.put(1, [1, 3], bytearray(b"x")) or parked.match_length([1, 3]) == 2
    assert not parked.put(0, [1, 2, 3], bytearray(b"x"))
    assert not parked.put(2, [1, 2, 3, 4, 5, 6, 7], bytearray(b"x"))
