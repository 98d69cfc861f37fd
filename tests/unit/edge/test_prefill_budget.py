import pytest

from workers.edge.prefill_budget import (
    CROWDED_STALL_FACTOR,
    MAX_PREFILL_STEP_S,
    MIN_PROMPT_TOKENS,
    STALL_FACTOR,
    TILE_TOKENS,
    PrefillBudget,
)

STEP_TOKENS = 512


def learned(write_s, prompt_s, num_writing=8, chunk=64, *, in_tiles=False):
    pacing = PrefillBudget(in_tiles=in_tiles)
    for _ in range(60):
        pacing.learn(num_writing, 0, write_s)
        pacing.learn(num_writing, chunk, write_s + chunk * prompt_s)
        pacing.learn(0, chunk, chunk * prompt_s)
    return pacing


@pytest.mark.parametrize(("prompt_s", "wanted"), [(0.0001, STEP_TOKENS), (0.005, 100), (9.0, MIN_PROMPT_TOKENS)])
def test_a_step_without_writers_reads_as_much_as_it_holds_but_ends_soon(prompt_s, wanted):
    count = learned(0.02, prompt_s).prompt_tokens(0, STEP_TOKENS, crowded=False)
    assert count == pytest.approx(wanted, abs=1)
    assert count == wanted or count * prompt_s <= MAX_PREFILL_STEP_S


@pytest.mark.parametrize(
    ("prompt_s", "num_tiles"), [(0.0001, STEP_TOKENS // TILE_TOKENS), (0.0043, 2), (0.006, 1), (9.0, 1)]
)
def test_a_step_without_writers_reads_whole_tiles_on_a_cpu(prompt_s, num_tiles):
    pacing = learned(0.02, prompt_s, in_tiles=True)
    assert pacing.prompt_tokens(0, STEP_TOKENS, crowded=False) == num_tiles * TILE_TOKENS
    assert pacing.prompt_tokens(0, TILE_TOKENS // 2, crowded=False) == TILE_TOKENS // 2


def test_small_pieces_being_dear_does_not_make_those_that_are_read_alone_small():
    pacing = PrefillBudget(in_tiles=True)
    for _ in range(60):
        pacing.learn(0, 2 * TILE_TOKENS, 2 * TILE_TOKENS * 0.002)
    alone = pacing.prompt_tokens(0, STEP_TOKENS, crowded=False)
    for _ in range(60):
        pacing.learn(1, MIN_PROMPT_TOKENS, 0.02 + MIN_PROMPT_TOKENS * 0.02)  # beside a writer
        pacing.learn(0, TILE_TOKENS - 1, (TILE_TOKENS - 1) * 0.02)  # a prompt's rest
    assert pacing.prompt_tokens(0, STEP_TOKENS, crowded=False) == alone == 4 * TILE_TOKENS


@pytest.mark.parametrize(("write_s", "prompt_s"), [(0.04, 0.001), (0.01, 0.0002), (0.1, 0.002)])
def test_a_step_with_prompts_takes_at_most_the_stall_factor_of_one_without(write_s, prompt_s):
    count = learned(write_s, prompt_s).prompt_tokens(8, STEP_TOKENS, crowded=False)
    assert write_s + count * prompt_s <= STALL_FACTOR * write_s * 1.01
    assert count >= min(0.9 * (STALL_FACTOR - 1) * write_s / prompt_s, STEP_TOKENS - 8) - 1


def test_a_prompt_progresses_however_slow_the_machine():
    assert learned(0.001, 0.1).prompt_tokens(8, STEP_TOKENS, crowded=False) == MIN_PROMPT_TOKENS


def test_the_writers_always_have_their_place_in_the_step():
    assert learned(1.0, 1e-6).prompt_tokens(8, STEP_TOKENS, crowded=False) == STEP_TOKENS - 8


def test_an_unknown_number_of_writers_is_judged_by_what_others_cost():
    pacing = PrefillBudget(in_tiles=False)
    for num in (1, 2, 4) * 200:
        pacing.learn(num, 0, 0.005 + 0.002 * num)
    for _ in range(60):
        pacing.learn(4, 64, 0.013 + 64 * 0.001)
    assert pacing.prompt_tokens(12, STEP_TOKENS, crowded=False) == pytest.approx(
        (STALL_FACTOR - 1) * 0.029 / 0.001, rel=0.05
    )


def test_prompts_that_never_end_are_not_read_in_ever_smaller_pieces():
    """Few tokens at once are dear, and no step shows what one without prompts would cost."""

    def step_s(rows):
        return 0.005 + 0.0016 * rows

    pacing = PrefillBudget(in_tiles=False)
    for _ in range(5):
        pacing.learn(1, 0, step_s(1))
    count = MIN_PROMPT_TOKENS
    for _ in range(60):
        pacing.learn(10, count, step_s(10 + count))
        count = pacing.prompt_tokens(10, STEP_TOKENS, crowded=False)
    assert count >= 12


def test_while_others_wait_for_a_place_more_is_read_at_once():
    pacing = learned(0.02, 0.001)
    assert pacing.prompt_tokens(8, STEP_TOKENS, crowded=True) == pytest.approx((CROWDED_STALL_FACTOR - 1) * 20, abs=2)
    assert pacing.prompt_tokens(8, STEP_TOKENS, crowded=False) < pacing.prompt_tokens(8, STEP_TOKENS, crowded=True)


@pytest.mark.parametrize("num_writing", [1, 8, TILE_TOKENS - 1 - MIN_PROMPT_TOKENS])
def test_beside_writers_a_step_stays_below_what_attention_computes_in_tiles(num_writing):
    pacing = learned(0.5, 0.0001, in_tiles=True)
    assert pacing.prompt_tokens(num_writing, STEP_TOKENS, crowded=True) == TILE_TOKENS - 1 - num_writing


def test_without_writers_or_with_more_than_a_tile_holds_the_tiles_do_not_count():
    pacing = learned(0.02, 0.0001, in_tiles=True)
    assert pacing.prompt_tokens(0, STEP_TOKENS, crowded=True) == STEP_TOKENS
    assert pacing.prompt_tokens(TILE_TOKENS, STEP_TOKENS, crowded=True) == MIN_PROMPT_TOKENS
