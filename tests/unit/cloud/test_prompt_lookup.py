from hypothesis import given
from hypothesis import strategies as st

from workers.cloud.prompt_lookup import LONGEST_PHRASE, PromptLookup

TOKENS = st.lists(st.integers(0, 5), max_size=40)


def after(draft, answer, prompt=()) -> PromptLookup:
    echo = PromptLookup(draft, prompt)
    for token in answer:
        echo.advance(token)
    return echo


def test_a_phrase_of_the_draft_goes_on_as_it_did_there():
    assert after([1, 2, 3, 4, 5], [9, 2, 3]).continuation(2) == ([4, 5], 2)


def test_a_phrase_of_the_prompt_goes_on_as_it_did_there():
    assert after([1, 2], [9, 7], prompt=[6, 7, 8, 9]).continuation(3) == ([8, 9], 1)


def test_a_phrase_of_the_answer_itself_goes_first():
    assert after([1, 2, 3], [1, 2, 7, 8, 1, 2]).continuation(3) == ([7, 8, 1], 2)


def test_the_longer_phrase_goes_before_the_nearer():
    assert after([1, 2, 3, 4], [3, 9, 1, 2, 3]).continuation(1) == ([4], 3)


def test_a_new_phrase_has_no_continuation():
    assert after([1, 2, 3], [7, 8]).continuation(5) == ([], 0)


@given(TOKENS, TOKENS, TOKENS, st.integers(0, 9))
def test_a_continuation_did_follow_the_last_tokens_somewhere(draft, answer, prompt, most):
    got, matched = after(draft, answer, prompt).continuation(most)
    wanted = [*answer[len(answer) - matched :], *got]
    assert len(got) <= most
    assert not got or any(
        source[begin : begin + len(wanted)] == wanted
        for source in (draft, answer, prompt)
        for begin in range(len(source))
    )


@given(TOKENS, TOKENS, TOKENS)
def test_no_longer_phrase_would_have_had_a_continuation(draft, answer, prompt):
    _, matched = after(draft, answer, prompt).continuation(1)
    longer = answer[len(answer) - matched - 1 :]
    if matched < LONGEST_PHRASE and len(longer) == matched + 1:
        assert not any(
            source[begin : begin + len(longer)] == longer and begin + len(longer) < len(source)
            for source in (draft, answer, prompt)
            for begin in range(len(source))
        )
