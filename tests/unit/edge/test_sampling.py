import numpy as np
import pytest

from schemas.requests import Sampling
from workers.edge.sampling import Sampler

ROW = np.array([2.0, 1.0, 0.5, 0.0, -1.0, -3.0], np.float32)


def shares(sampling, row=ROW, draws=20_000):
    sampler = Sampler(sampling, [])
    counts = np.bincount([sampler.sample(row) for _ in range(draws)], minlength=len(row))
    return counts / draws


def softmax(row):
    weights = np.exp(row - row.max())
    return weights / weights.sum()


def test_tokens_are_drawn_with_the_probabilities_of_the_temperature():
    drawn = shares(Sampling(temperature=0.7, seed=1))
    assert drawn == pytest.approx(softmax(ROW / 0.7), abs=0.015)


def test_top_k_leaves_the_likeliest_k_in_proportion():
    drawn = shares(Sampling(temperature=1.0, top_k=2, seed=1))
    assert drawn[:2] == pytest.approx(softmax(ROW[:2]), abs=0.015)
    assert drawn[2:].sum() == 0


def test_top_p_leaves_the_smallest_set_that_reaches_it():
    drawn = shares(Sampling(temperature=1.0, top_p=0.75, seed=1))
    assert (drawn > 0).tolist() == [True, True, False, False, False, False]


def test_top_p_sorts_the_whole_row_where_the_likeliest_do_not_reach_it():
    row = np.zeros(1000, np.float32)
    drawn = shares(Sampling(temperature=1.0, top_p=0.5, seed=1), row)
    assert 480 <= (drawn > 0).sum() <= 500


def test_top_k_comes_before_top_p_as_in_vllm():
    drawn = shares(Sampling(temperature=1.0, top_k=3, top_p=0.85, seed=1))
    assert (drawn > 0).tolist() == [True, True, False, False, False, False]


def test_the_same_seed_draws_the_same_tokens_and_another_does_not():
    samplers = [Sampler(Sampling(temperature=1.0, seed=seed), []) for seed in (5, 5, 6)]
    first, again, other = ([sampler.sample(ROW) for _ in range(50)] for sampler in samplers)
    assert first == again != other


def test_greedy_takes_the_likeliest_after_a_bias():
    assert Sampler(Sampling(logit_bias={0: -100.0}), []).sample(ROW) == 1
    assert Sampler(Sampling(logit_bias={5: 100.0, 0: 1.0}), []).sample(ROW) == 5


@pytest.mark.parametrize("temperature", [5e-324, 1e-30, 1e-5, 0.01])
def test_a_temperature_next_to_nothing_draws_the_likeliest_and_no_infinities(temperature):
    sampler = Sampler(Sampling(temperature=temperature, seed=1), [])
    with np.errstate(all="raise", under="ignore"):
        assert {sampler.sample(ROW) for _ in range(50)} == {0}


def test_the_least_repetition_penalty_leaves_finite_logits():
    sampler = Sampler(Sampling(repetition_penalty=0.01, temperature=1.0, seed=1), [0, 4])
    with np.errstate(all="raise", under="ignore"):
        assert sampler.sample(ROW * 1e3) == 0


def test_the_repetition_penalty_divides_positive_and_multiplies_negative_logits_of_prompt_and_answer():
    sampler = Sampler(Sampling(repetition_penalty=2.0), [0])
    assert sampler.sample(np.array([2.0, 1.1, -1.0], np.float32)) == 1
    sampler.accept(1)
    assert sampler.sample(np.array([2.0, 1.1, 1.05], np.float32)) == 2
    sampler.accept(2)
    assert sampler.sample(np.array([-1.0, -3.0, -1.5], np.float32)) == 0


def test_frequency_and_presence_penalties_count_the_answer_only():
    sampler = Sampler(Sampling(frequency_penalty=0.6), [0, 0, 0])
    assert sampler.sample(ROW) == 0
    sampler.accept(0)
    assert sampler.sample(ROW) == 0
    sampler.accept(0)
    assert sampler.sample(ROW) == 1
    present = Sampler(Sampling(presence_penalty=1.5), [])
    present.accept(0)
    assert present.sample(ROW) == 1


def test_choosing_leaves_the_row_as_it_was():
    row = ROW.copy()
    sampler = Sampler(Sampling(repetition_penalty=1.5, logit_bias={1: 2.0}, temperature=1.0), [0])
    sampler.sample(row)
    assert (row == ROW).all()


@pytest.mark.parametrize(
    ("sampling", "likeliest"),
    [(Sampling(), True), (Sampling(temperature=1), False), (Sampling(presence_penalty=1), False)],
)
def test_plain_greedy_is_known_to_take_the_likeliest(sampling, likeliest):
    assert Sampler(sampling, []).takes_argmax is likeliest
