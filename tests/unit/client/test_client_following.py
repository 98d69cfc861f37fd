import hypothesis.strategies as st
import pytest
from hypothesis import given

from firstdraft.client.calls import Reply
from firstdraft.client.errors import NotFound, Unreachable
from firstdraft.client.following import Following
from firstdraft.client.retries import RetryRule
from firstdraft.client.statistics import Counters
from schemas.events import Cancelled, DraftText, Queued
from schemas.policy import Tier

EVENTS = [Queued(tier=Tier.EDGE), DraftText(position=0, text="a\nb"), DraftText(position=3, text="ü"), Cancelled()]
LOST = Reply(error=OSError("reset"))


def lines_after(position):
    """What a gateway sends after the position, as lines."""
    for number, event in enumerate(EVENTS, 1):
        if position is None or number > int(position.split("-")[0]):
            yield from [f"id: {number}-0", f"event: {event.type}", f"data: {event.model_dump_json()}", ""]
            yield from [": still here", ""]


def a_following(max_retries=3):
    return Following("j1", RetryRule(max_retries=max_retries), Counters())


@given(st.lists(st.integers(0, 24), max_size=12))
def test_wherever_the_stream_is_cut_every_event_comes_once_and_in_order(cuts):
    following, told = a_following(max_retries=100), []
    for cut in [*cuts, None]:
        position = following.call().headers.get("Last-Event-ID")
        for line in list(lines_after(position))[:cut]:
            told += following.take(f"{line}\n".encode())
        if following.is_over(Reply(200)):
            break
        following.delay_s(LOST, 0.0)
    assert told == EVENTS


def test_an_event_that_this_version_does_not_know_is_passed_over():
    following = a_following()
    told = []
    for line in ["id: 5-0", 'data: {"type": "foretold"}', ""]:
        told += following.take(f"{line}\n".encode())
    assert told == []
    assert following.call().headers["Last-Event-ID"] == "5-0"


def test_a_stream_that_never_comes_is_given_up():
    following = a_following(max_retries=2)
    assert following.delay_s(LOST, 0.0) == 0.0
    following.delay_s(LOST, 0.0)
    with pytest.raises(Unreachable):
        following.delay_s(LOST, 0.0)


def test_a_job_that_is_not_there_is_said_at_once():
    with pytest.raises(NotFound):
        a_following().delay_s(Reply(404, b'{"title": "No such job", "status": 404, "detail": "gone"}'), 0.0)


def test_nothing_more_to_tell_is_the_end():
    assert a_following().is_over(Reply(204))
