from hypothesis import given
from hypothesis import strategies as st

from workers.cloud.drafts_in_flight import DraftHint, DraftsInFlight

DRAFT = tuple(range(100, 140))


def begun(hint: DraftHint, *, most_tokens: int = 100, most_proposed: int = 24) -> DraftsInFlight:
    drafts = DraftsInFlight()
    drafts.begin("a", hint, most_tokens=most_tokens, most_proposed=most_proposed)
    return drafts


def proposed(drafts: DraftsInFlight, tokens: list[int], now_s: float = 0.0) -> list[int]:
    drafts.advance("a", tokens)
    return drafts.propose(["a"], now_s=now_s).get("a", [])


def test_a_draft_is_proposed_from_where_the_answer_stands_in_it():
    got = proposed(begun(DraftHint(DRAFT)), [100, 101])
    assert tuple(got) == DRAFT[2 : 2 + len(got)]
    assert got


def test_a_request_without_a_draft_gets_no_proposals():
    assert proposed(begun(DraftHint()), [5]) == []


def test_nothing_is_proposed_beyond_the_last_token_that_may_be_written():
    drafts = begun(DraftHint(DRAFT), most_tokens=6)
    assert len(proposed(drafts, [100, 101])) <= 3
    assert proposed(drafts, [102, 103, 104]) == []


def test_nothing_is_proposed_from_a_token_of_which_the_edge_was_too_unsure():
    hint = DraftHint(DRAFT, probabilities=(0.9,) * 5 + (0.2,) + (0.9,) * 34, min_edge_probability=0.3)
    assert proposed(begun(hint), [100]) == list(DRAFT[1:5])


def test_a_draft_that_is_always_wrong_is_given_up():
    drafts = begun(DraftHint(DRAFT))
    counts = [len(proposed(drafts, [token], now_s=0.08 * token)) for token in range(8)]
    assert counts[-1] == 0
    assert sum(counts) < 30


def test_without_adapting_the_most_is_proposed_whatever_happened():
    drafts = begun(DraftHint(DRAFT, adapt=False), most_proposed=8)
    assert len(proposed(drafts, [100])) == 8
    assert len(proposed(drafts, [7])) == 8


def test_a_request_may_ask_for_fewer_proposals_than_the_engine_allows():
    assert len(proposed(begun(DraftHint(DRAFT, adapt=False, max_proposed=3)), [100])) == 3


def test_finished_requests_are_forgotten():
    drafts = begun(DraftHint(DRAFT))
    drafts.forget_all_but({"b"})
    assert "a" not in drafts


def test_a_hint_survives_its_packing():
    hint = DraftHint(DRAFT, probabilities=(0.5,), rejoin=False, max_proposed=7)
    assert DraftHint.unpack(hint.pack()) == hint


@given(st.lists(st.integers(98, 142), max_size=60), st.integers(1, 24))
def test_proposals_are_always_a_piece_of_the_draft_or_of_the_answer(answer, most):
    drafts = begun(DraftHint(DRAFT), most_proposed=most)
    for index, token in enumerate(answer):
        got = tuple(proposed(drafts, [token], now_s=float(index)))
        assert len(got) <= most
        texts = (DRAFT, tuple(answer[: index + 1]))
        assert not got or any(text[begin : begin + len(got)] == got for text in texts for begin in range(len(text)))
