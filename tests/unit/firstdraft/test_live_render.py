import hypothesis.strategies as st
from hypothesis import given

from firstdraft.cli.render import Kind, LiveAnswer
from schemas.events import AcceptedText, CorrectedText, Decision, Done, DraftText, Started
from schemas.policy import Tier
from tests.samples import a_result


def painted(events):
    painting = LiveAnswer()
    for event in events:
        painting.take(event)
    return painting.pieces()


def test_the_draft_is_shown_at_once_and_as_a_draft():
    assert painted([DraftText(position=0, text="it "), DraftText(position=3, text="is")]) == [("it is", Kind.DRAFT)]


def test_a_trusted_draft_stands():
    assert painted([DraftText(position=0, text="it is"), Decision(escalated=False, reason="sure")]) == [
        ("it is", Kind.ANSWER)
    ]


def test_the_cloud_repaints_the_draft_from_the_left():
    events = [
        DraftText(position=0, text="the sky is red"),
        Decision(escalated=True, reason="unsure"),
        Started(tier=Tier.CLOUD, worker="c", attempt=1),
        AcceptedText(position=0, text="the sky is "),
    ]
    assert painted(events) == [("the sky is ", Kind.ANSWER), ("red", Kind.DRAFT)]
    events.append(CorrectedText(position=11, text="blue"))
    events.append(Done(result=a_result("the sky is blue", Tier.CLOUD)))
    assert painted(events) == [("the sky is ", Kind.ANSWER), ("blue", Kind.CORRECTED)]


def test_a_shorter_answer_leaves_nothing_of_the_draft_behind():
    events = [DraftText(position=0, text="a long draft"), AcceptedText(position=0, text="a")]
    assert painted([*events, Done(result=a_result("a"))]) == [("a", Kind.ANSWER)]


@given(st.text(max_size=10), st.lists(st.tuples(st.booleans(), st.text(min_size=1, max_size=5))), st.booleans())
def test_at_the_end_the_picture_is_the_answer(draft, parts, again):
    events, position = [DraftText(position=0, text=draft)], 0
    for accepted, text in parts:
        kind = AcceptedText if accepted else CorrectedText
        events.append(kind(position=position, text=text))
        position += len(text)
    answer = "".join(text for _, text in parts) or draft
    if again:  # a stream that began in the middle
        events = events[1:]
    assert "".join(text for text, _ in painted([*events, Done(result=a_result(answer))])) == answer
