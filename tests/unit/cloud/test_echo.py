from hypothesis import given
from hypothesis import strategies as st

from workers.cloud.echo import Echo

TOKENS = st.lists(st.integers(0, 5), max_size=40)


def after(draft, answer) -> Echo:
    echo = Echo(draft)
    for token in answer:
        echo.advance(token)
    return echo


def test_a_phrase_of_the_draft_goes_on_as_it_did_there():
    assert after([1, 2, 3, 4, 5], [9, 2, 3]).continuation(2) == [4, 5]


def test_a_phrase_of_the_answer_itself_goes_first():
    assert after([1, 2, 3], [1, 2, 7, 8, 1, 2]).continuation(3) == [7, 8, 1]


def test_a_new_phrase_has_no_continuation():
    assert after([1, 2, 3], [7, 8]).continuation(5) == []


@given(TOKENS, TOKENS, st.integers(0, 9))
def test_a_continuation_did_follow_the_last_tokens_somewhere(draft, answer, most):
    got = after(draft, answer).continuation(most)
    wanted = [*answer[-2:], *got]
    assert len(got) <= most
    assert not got or any(
        source[begin : begin + len(wanted)] == wanted for source in (draft, answer) for begin in range(len(source))
    )
