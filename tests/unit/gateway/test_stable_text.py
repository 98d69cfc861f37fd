import hypothesis.strategies as st
import pytest
from hypothesis import given

from config.settings import read_settings
from gateway.jobs.request_validation import Admission
from gateway.openai.stable_text import Diverged, StableText
from schemas.events import AcceptedText, CorrectedText, Decision, Done, DraftText, Queued, Started, WrittenText
from schemas.policy import Tier
from tests.samples import a_result

POLICIES = Admission(read_settings()).policies


def told(policy, events):
    standing = StableText(POLICIES[policy])
    return [standing.take(event) for event in events]


def drafting(text, size=2):
    yield Started(tier=Tier.EDGE, worker="w", attempt=1)
    for at in range(0, len(text), size):
        yield DraftText(position=at, text=text[at : at + size])


def verifying(text, size=3, attempt=1):
    yield Started(tier=Tier.CLOUD, worker="w", attempt=attempt)
    for place, at in enumerate(range(0, len(text), size)):
        kind = (AcceptedText, CorrectedText, WrittenText)[place % 3]
        yield kind(position=at, text=text[at : at + size])


def done(text):
    return Done(result=a_result(text))


def test_a_draft_that_is_still_to_be_judged_is_not_told():
    said = told("baseline", [*drafting("a draft"), Decision(escalated=False, reason="sure"), done("a draft")])
    assert said[:-2] == [""] * (len(said) - 2)
    assert said[-2:] == ["a draft", ""]


def test_a_draft_that_nobody_judges_is_told_as_it_is_written():
    said = told("edge_only", list(drafting("a draft")))
    assert said == ["", "a ", "dr", "af", "t"]


def test_of_a_doubted_draft_only_the_clouds_text_is_told():
    events = [*drafting("wrong"), Decision(escalated=True, reason="unsure"), Queued(tier=Tier.CLOUD)]
    said = told("baseline", [*events, *verifying("right answer"), done("right answer")])
    assert "".join(said) == "right answer"
    assert said[: len(events)] == [""] * len(events)


@given(st.text(min_size=1, max_size=30), st.integers(1, 5), st.integers(0, 30), st.integers(1, 5))
def test_a_cloud_worker_that_is_lost_changes_nothing_of_what_is_told(answer, size, cut, size_after):
    first = list(verifying(answer, size))[: 1 + cut]
    events = [*first, *verifying(answer, size_after, attempt=2), done(answer)]
    assert "".join(told("cloud_only", events)) == answer


def test_text_that_becomes_another_when_it_is_written_anew_breaks_the_stream_off():
    with pytest.raises(Diverged):
        told("cloud_only", [*verifying("one way"), *verifying("another way", attempt=2)])
    with pytest.raises(Diverged):
        told("cloud_only", [*verifying("one way"), done("another way")])


@given(st.sampled_from(sorted(POLICIES)), st.text(max_size=20), st.text(max_size=20))
def test_however_it_goes_what_is_told_is_the_answer(policy, draft, answer):
    events = list(drafting(draft))
    if POLICIES[policy].has(Tier.CLOUD):
        events += [Decision(escalated=True, reason="x"), *verifying(answer), done(answer)]
    else:
        events += [Decision(escalated=False, reason="x"), done(draft)]
    assert "".join(told(policy, events)) == (answer if POLICIES[policy].has(Tier.CLOUD) else draft)
