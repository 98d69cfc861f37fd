from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from workers.edge.text_stream import TextStream

#: Few letters, so that stop strings and their beginnings occur; some of two to four bytes.
texts = st.text(alphabet="abé漢🙂", max_size=24)
stops = st.lists(st.text(alphabet="abé漢", min_size=1, max_size=4), max_size=3)


def pieces(raw, cuts):
    edges = [0, *sorted(cut % (len(raw) + 1) for cut in cuts), len(raw)]
    return [raw[start:end] for start, end in pairwise(edges)]


@given(texts, stops, st.lists(st.integers(0, 100)))
def test_the_text_is_cut_before_the_first_stop_string_however_the_bytes_are_cut(text, stops, cuts):
    stream = TextStream(stops)
    shown = []
    for piece in pieces(text.encode(), cuts):
        shown.append(stream.push(piece))
        expected_so_far = "".join(shown)
        assert text.startswith(expected_so_far)
        assert not any(stop in expected_so_far for stop in stops)
    if not stream.stopped:
        shown.append(stream.finish())
    assert stream.stopped == any(stop in text for stop in stops)
    assert stream.text == "".join(shown)
    if not stream.stopped:
        assert stream.text == text


@given(texts, st.text(alphabet="abé漢", min_size=1, max_size=4))
def test_whole_characters_end_exactly_before_the_stop_string(text, stop):
    stream = TextStream([stop])
    for character in text:
        stream.push(character.encode())
    stream.finish()
    assert stream.text == text.split(stop)[0]


def test_a_character_cut_across_tokens_appears_when_it_is_whole():
    stream = TextStream()
    raw = "🙂".encode()
    assert [stream.push(raw[:1]), stream.push(raw[1:3]), stream.push(raw[3:])] == ["", "", "🙂"]


def test_a_character_that_never_ends_is_dropped_and_a_wrong_byte_is_replaced():
    stream = TextStream()
    assert stream.push(b"a\xffb") == "a\ufffdb"
    stream.push("🙂".encode()[:2])
    stream.finish()
    assert stream.text == "a\ufffdb"


def test_text_that_may_begin_a_stop_string_is_held_back_until_it_does_not():
    stream = TextStream(["END"])
    assert stream.push(b"so EN") == "so "
    assert stream.push(b"tire") == "ENtire"
    assert stream.push(b" E") == " "
    assert stream.finish() == "E"
