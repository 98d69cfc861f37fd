import pytest

from workers.edge.pacing import MIN_PROMPT_TOKENS, MOST_READING_S, STALL_FACTOR, Pacing

STEP_TOKENS = 512


def learned(write_s, prompt_s, num_writing=8, chunk=64):
    pacing = Pacing()
    for _ in range(60):
        pacing.learn(num_writing, 0, write_s)
        pacing.learn(num_writing, chunk, write_s + chunk * prompt_s)
    return pacing


@pytest.mark.parametrize(("prompt_s", "wanted"), [(0.0001, STEP_TOKENS), (0.005, 100), (9.0, MIN_PROMPT_TOKENS)])
def test_a_step_without_writers_reads_as_much_as_it_holds_but_ends_soon(prompt_s, wanted):
    count = learned(0.02, prompt_s).prompt_tokens(0, STEP_TOKENS)
    assert count == pytest.approx(wanted, abs=1)
    assert count == wanted or count * prompt_s <= MOST_READING_S


@pytest.mark.parametrize(("write_s", "prompt_s"), [(0.04, 0.001), (0.01, 0.0002), (0.1, 0.002)])
def test_a_step_with_prompts_takes_at_most_the_stall_factor_of_one_without(write_s, prompt_s):
    count = learned(write_s, prompt_s).prompt_tokens(8, STEP_TOKENS)
    assert write_s + count * prompt_s <= STALL_FACTOR * write_s * 1.01
    assert count >= min(0.9 * (STALL_FACTOR - 1) * write_s / prompt_s, STEP_TOKENS - 8) - 1


def test_a_prompt_progresses_however_slow_the_machine():
    assert learned(0.001, 0.1).prompt_tokens(8, STEP_TOKENS) == MIN_PROMPT_TOKENS


def test_the_writers_always_have_their_place_in_the_step():
    assert learned(1.0, 1e-6).prompt_tokens(8, STEP_TOKENS) == STEP_TOKENS - 8


def test_an_unknown_number_of_writers_is_judged_by_the_nearest_known():
    pacing = learned(0.04, 0.001, num_writing=8)
    assert pacing.prompt_tokens(7, STEP_TOKENS) == pacing.prompt_tokens(8, STEP_TOKENS)
