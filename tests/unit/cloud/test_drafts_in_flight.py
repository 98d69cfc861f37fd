from hypothesis import given
from hypothesis import strategies as st

from workers.cloud.drafts_in_flight import DraftHint, DraftsInFlight

DRAFT = tuple(range(100, 140))
PROMPT = tuple(range(130, 98, -1))


def begun(
    hint: DraftHint, *, max_tokens: int = 100, max_proposed: int = 24, prompt_tokens: tuple[int, ...] = ()
) -> DraftsInFlight:
    drafts = DraftsInFlight()
    drafts.begin("a", hint, max_tokens=max_tokens, max_proposed=max_proposed, prompt_tokens=prompt_tokens)
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
    drafts = begun(DraftHint(DRAFT), max_tokens=6)
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


def test_where_the_draft_gives_no_hint_a_phrase_of_the_prompt_is_tried():
    drafts = DraftsInFlight()
    drafts.begin("a", DraftHint((1, 2)), max_tokens=50, max_proposed=8, prompt_tokens=(50, 51, 52, 53, 54))
    assert proposed(drafts, [60, 61, 62, 50, 51, 52]) == [53, 54]


def test_what_one_models_drafts_did_says_nothing_of_anothers():
    def first_proposal(drafts: DraftsInFlight, name: str, model: str) -> int:
        drafts.begin(name, DraftHint(DRAFT, model=model), max_tokens=100, max_proposed=24)
        drafts.advance(name, [100])
        return len(drafts.propose([name], now_s=0.0)[name])

    drafts = DraftsInFlight()
    fresh = first_proposal(drafts, "first", "good")
    for number in range(40):
        drafts.begin(f"bad{number}", DraftHint(DRAFT, model="bad"), max_tokens=100, max_proposed=24)
        drafts.advance(f"bad{number}", [7])
    assert first_proposal(drafts, "second", "good") == fresh
    assert first_proposal(drafts, "third", "bad") < fresh


def test_without_adapting_the_most_is_proposed_whatever_happened():
    drafts = begun(DraftHint(DRAFT, adapt=False), max_proposed=8)
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
def test_proposals_are_always_a_piece_of_the_draft_the_answer_or_the_prompt(answer, most):
    drafts = begun(DraftHint(DRAFT), max_proposed=most, prompt_tokens=PROMPT)
    for index, token in enumerate(answer):
        got = tuple(proposed(drafts, [token], now_s=float(index)))
        assert len(got) <= most
        texts = (DRAFT, tuple(answer[: index + 1]), PROMPT)
        assert not got or any(text[begin : begin + len(got)] == got for text in texts for begin in range(len(text)))
