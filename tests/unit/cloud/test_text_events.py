import itertools

from hypothesis import given
from hypothesis import strategies as st

from schemas.events import AcceptedText, CorrectedText, WrittenText
from workers.cloud.text_events import TextEvents

TOKENS = st.lists(st.tuples(st.text(max_size=4), st.booleans()), max_size=30)


@given(TOKENS, st.lists(st.integers(0, 200), max_size=5))
def test_the_pieces_put_together_are_the_answer_whatever_the_portions(tokens, cuts):
    text = "".join(part for part, _ in tokens)
    borders = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    events = TextEvents(has_draft=True)
    for part, accepted in tokens:
        events.add_token(len(part), accepted=accepted)
    pieces = [piece for a, b in itertools.pairwise(borders) for piece in events.of(text[a:b])]
    assert "".join(piece.text for piece in pieces) == text
    assert all(text[piece.position :].startswith(piece.text) for piece in pieces)


@given(TOKENS)
def test_each_character_is_told_as_its_token_was(tokens):
    text = "".join(part for part, _ in tokens)
    events = TextEvents(has_draft=True)
    for part, accepted in tokens:
        events.add_token(len(part), accepted=accepted)
    told = [isinstance(piece, AcceptedText) for piece in events.of(text) for _ in piece.text]
    assert told == [accepted for part, accepted in tokens for _ in part]


def test_neighbouring_tokens_of_one_kind_are_one_piece():
    events = TextEvents(has_draft=True)
    for characters, accepted in ((3, True), (2, True), (4, False)):
        events.add_token(characters, accepted=accepted)
    assert list(events.of("abcdefghi")) == [
        AcceptedText(position=0, text="abcde"),
        CorrectedText(position=5, text="fghi"),
    ]


def test_without_a_draft_all_text_is_written():
    events = TextEvents(has_draft=False)
    assert list(events.of("one")) == [WrittenText(position=0, text="one")]
    assert list(events.of(" two")) == [WrittenText(position=3, text=" two")]
