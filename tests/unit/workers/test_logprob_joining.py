from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.results import RivalLogprob, TokenLogprob
from workers.edge.text_stream import TextStream
from workers.runtime.logprob_joining import DoesNotJoin, joined

#: Few letters, so that stop strings occur; of one to four bytes, joined emoji and bytes that are no UTF-8 among them.
PARTS = st.lists(st.sampled_from([*(c.encode() for c in "aabé漢🙂\u200d\ufffd"), b"\xff", b"\xf0\x9f"]), max_size=24)
STOPS = st.lists(st.text(alphabet="abé漢🙂\ufffd", min_size=1, max_size=3), max_size=3)
CUTS = st.lists(st.integers(0, 200), max_size=30)


def entries(*pieces: bytes) -> list[TokenLogprob]:
    return [
        TokenLogprob(
            token=piece.decode(errors="replace"),
            bytes=tuple(piece),
            token_id=place,
            logprob=-float(place),
            top=(RivalLogprob(token="<|im_end|>", bytes=(), token_id=2, logprob=-9.0),),
        )
        for place, piece in enumerate(pieces)
    ]


def in_pieces(raw: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(raw) + 1) for cut in cuts), len(raw)]
    return [raw[start:end] for start, end in pairwise(edges)]


def joined_bytes(kept) -> bytes:
    return b"".join(bytes(entry.bytes) for entry in kept)


@given(PARTS, CUTS, STOPS)
def test_whatever_the_tokens_and_the_stop_strings_the_bytes_are_the_text(parts, cuts, stops):
    pieces = in_pieces(b"".join(parts), cuts)
    stream, written = TextStream(stops), []
    for piece in pieces:
        if not stream.stopped:
            stream.push(piece)
            written.append(piece)
    stream.finish()
    kept = joined(entries(*written), stream.text)
    assert joined_bytes(kept).decode(errors="replace") == stream.text
    assert all(entry.bytes for entry in kept)
    assert [entry.token for entry in kept] == [bytes(entry.bytes).decode(errors="replace") for entry in kept]
    # Each is its token, or the beginning of it: only the last one may be cut.
    for entry in kept[:-1]:
        assert bytes(entry.bytes) == written[entry.token_id]
    for entry in kept[-1:]:
        assert written[entry.token_id].startswith(bytes(entry.bytes))


@given(st.text(alphabet="abé漢🙂", max_size=12), st.text(alphabet="abé漢🙂", max_size=4))
def test_tokens_of_whole_characters_join_by_their_strings_too(text, rest):
    kept = joined(entries(*(character.encode() for character in text + rest)), text)
    assert "".join(entry.token for entry in kept) == text


@pytest.mark.parametrize(
    ("pieces", "text", "kept"),
    [
        # The end of text adds nothing and is left out.
        ([b"Paris", b".", b""], "Paris.", [b"Paris", b"."]),
        # The tokens of a stop string, the one it begins in being cut.
        ([b"one", b" two", b" three"], "one t", [b"one", b" t"]),
        ([b"one", b" two"], "one", [b"one"]),
        ([b"one"], "", []),
        ([], "", []),
        # An emoji of two tokens, and one that was never ended.
        ([b"\xf0\x9f", b"\x99\x82", b"\xf0\x9f"], "🙂", [b"\xf0\x9f", b"\x99\x82"]),
        # One in the middle of which the answer ends: the text does not have it.
        ([b"a\xf0\x9f"], "a", [b"a"]),
        ([b"\xf0\x9f"], "", []),
        # Half a character before another is one U+FFFD, and stands as the two bytes that it was.
        ([b"\xf0\x9f", b"xy"], "\ufffdx", [b"\xf0\x9f", b"x"]),
        ([b"\xf0\x9f", b"xy"], "\ufffd", [b"\xf0\x9f"]),
        ([b"\xff\xff", b"x"], "\ufffd", [b"\xff"]),
        # What the model itself wrote as U+FFFD.
        (["\ufffdé".encode(), b"x"], "\ufffd", ["\ufffd".encode()]),
    ],
)
def test_what_stands_of_each_token(pieces, text, kept):
    assert [bytes(entry.bytes) for entry in joined(entries(*pieces), text)] == kept


def test_a_token_that_was_cut_keeps_its_id_its_log_probability_and_its_rivals():
    whole = entries(b"one", b" two")
    assert joined(whole, "one t")[1] == whole[1].model_copy(update={"token": " t", "bytes": (32, 116)})


@pytest.mark.parametrize(("pieces", "text"), [([b"a"], "ab"), ([b"a", b"c"], "ab"), ([b"\xf0\x9f"], "🙂")])
def test_a_text_that_is_not_the_tokens_own_does_not_join(pieces, text):
    with pytest.raises(DoesNotJoin):
        joined(entries(*pieces), text)


def test_where_none_were_asked_for_there_are_none():
    assert joined([], "a") == ()
