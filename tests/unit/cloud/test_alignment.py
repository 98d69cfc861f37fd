import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.cloud.alignment import Alignment

TOKENS = st.lists(st.integers(0, 9), max_size=60)
DISTINCT = st.lists(st.integers(0, 10_000), unique=True, min_size=8, max_size=80)
#: A token that no draft below holds.
FOREIGN = 99_999


def accepted_tokens(draft, answer, *, rejoin=True):
    alignment = Alignment(draft, rejoin=rejoin)
    for token in answer:
        alignment.advance(token)
    return alignment.accepted


@given(TOKENS)
def test_a_draft_that_the_model_agrees_with_is_accepted_whole(draft):
    assert accepted_tokens(draft, draft) == len(draft)


@given(TOKENS, TOKENS)
def test_never_more_tokens_stand_than_either_side_has(draft, answer):
    assert 0 <= accepted_tokens(draft, answer) <= min(len(draft), len(answer))


@given(TOKENS, TOKENS)
def test_tokens_that_stand_are_in_the_draft_in_the_same_order(draft, answer):
    alignment = Alignment(draft)
    standing = [token for token in answer if alignment.advance(token)]
    rest = iter(draft)
    assert all(token in rest for token in standing)
    assert len(standing) <= alignment.accepted


def test_a_chance_match_of_a_common_token_does_not_lead_astray():
    # 7 is common: the one that the answer writes instead of 3 is not the one further on.
    draft = [1, 2, 3, 4, 7, 5, 6, 8]
    assert accepted_tokens(draft, [1, 2, 7, 4, 7, 5, 6, 8]) == 7


@given(TOKENS, TOKENS)
def test_what_should_come_next_lies_behind_all_that_stands(draft, answer):
    alignment = Alignment(draft)
    for token in answer:
        alignment.advance(token)
        if alignment.continuation is not None:
            assert alignment.accepted <= alignment.continuation < len(draft)


@given(DISTINCT, st.data())
def test_a_replaced_token_costs_itself_alone(draft, data):
    index = data.draw(st.integers(0, len(draft) - 1))
    answer = [*draft[:index], FOREIGN, *draft[index + 1 :]]
    assert accepted_tokens(draft, answer) == len(draft) - 1


@given(DISTINCT, st.data())
def test_an_inserted_token_costs_nothing_of_the_draft(draft, data):
    index = data.draw(st.integers(0, len(draft)))
    least = len(draft) - (index == len(draft) - 1)
    assert accepted_tokens(draft, [*draft[:index], FOREIGN, *draft[index:]]) >= least


@given(DISTINCT, st.data())
def test_a_left_out_token_costs_itself_alone(draft, data):
    index = data.draw(st.integers(0, len(draft) - 1))
    least = len(draft) - 1 - (index == len(draft) - 2)
    assert accepted_tokens(draft, draft[:index] + draft[index + 1 :]) >= least


def test_a_left_out_paragraph_is_noticed_after_two_tokens():
    draft = list(range(100))
    alignment = Alignment(draft)
    stood = [alignment.advance(token) for token in [*range(10), 50, 51, 52]]
    assert stood[10:] == [False, True, True]
    assert alignment.accepted == 13
    assert alignment.continuation == 53


def test_the_first_differing_token_leaves_a_replacement_assumed():
    alignment = Alignment([1, 2, 3, 4])
    alignment.advance(1)
    alignment.advance(FOREIGN)
    assert (alignment.continuation, alignment.streak) == (2, 0)


def test_after_several_differing_tokens_nothing_is_assumed_any_more():
    alignment = Alignment(list(range(20)))
    for _ in range(4):
        alignment.advance(FOREIGN)
    assert alignment.continuation is None


def test_without_rejoining_the_first_difference_ends_it():
    alignment = Alignment([1, 2, 3, 4], rejoin=False)
    assert [alignment.advance(token) for token in (1, FOREIGN, 3, 4)] == [True, False, False, False]
    assert alignment.continuation is None


@pytest.mark.parametrize("draft", [[], [1]])
def test_a_draft_used_up_gives_no_hint(draft):
    alignment = Alignment(draft)
    for token in draft:
        alignment.advance(token)
    assert alignment.continuation is None
