from itertools import groupby, pairwise

import hypothesis.strategies as st
from hypothesis import given

from schemas.events import AcceptedText, CorrectedText, Decision, DraftText, WrittenText
from workers.runtime.in_flight import _append

KINDS = [DraftText, AcceptedText, CorrectedText, WrittenText]


@st.composite
def tellings(draw):
    """A few runs of text of one kind each, in pieces, with other facts between them."""
    events, position = [], 0
    for kind in draw(st.lists(st.sampled_from([*KINDS, Decision]), max_size=8)):
        if kind is Decision:
            events.append(Decision(escalated=True, reason="unsure"))
            continue
        for text in draw(st.lists(st.text(min_size=1, max_size=5), min_size=1, max_size=4)):
            events.append(kind(position=position, text=text))
            position += len(text)
    return events


def merged(events):
    waiting = []
    for event in events:
        _append(waiting, event)
    return waiting


def text_of(events, kind):
    return "".join(event.text for event in events if isinstance(event, kind))


@given(tellings())
def test_merging_keeps_all_text_in_its_order(events):
    told = merged(events)
    for kind in KINDS:
        assert text_of(told, kind) == text_of(events, kind)


@given(tellings())
def test_merging_keeps_the_order_of_kinds(events):
    def kinds(of):
        return [kind for kind, _ in groupby(type(event) for event in of)]

    assert kinds(merged(events)) == kinds(events)


@given(tellings())
def test_merged_text_follows_on_from_what_went_before(events):
    position = 0
    for event in merged(events):
        if isinstance(event, tuple(KINDS)):
            assert event.position == position
            position += len(event.text)


@given(tellings())
def test_no_two_neighbours_are_left_that_could_be_one(events):
    told = merged(events)
    for left, right in pairwise(told):
        assert type(left) is not type(right) or isinstance(left, Decision)


def test_text_that_does_not_follow_on_stays_apart():
    told = merged([DraftText(position=0, text="one"), DraftText(position=0, text="again")])
    assert [event.text for event in told] == ["one", "again"]
