import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.edge.token_metrics import BLOCK, Meter, largest

SIZE = 3 * BLOCK + 17


def plain_softmax(row, temperature=1.0):
    weights = np.exp((row - row.max()).astype(np.float64) / temperature)
    return weights / weights.sum()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
def test_figures_agree_with_a_plain_softmax_in_double_precision(seed, scale):
    random = np.random.default_rng(seed)
    row = (random.standard_normal(SIZE) * scale).astype(np.float32)
    chosen = int(random.integers(SIZE)) if seed % 2 else int(row.argmax())
    measured = Meter(SIZE, temperature=1.5, top_k=5).measure(row, chosen)
    probabilities = plain_softmax(row)
    ranked = np.sort(probabilities)[::-1]
    own_entropy = -(probabilities * np.log(np.maximum(probabilities, 1e-300))).sum() / np.log(SIZE)
    assert measured.probability == pytest.approx(probabilities[chosen], rel=1e-4, abs=1e-12)
    assert measured.scaled_probability == pytest.approx(plain_softmax(row, 1.5)[chosen], rel=1e-4, abs=1e-12)
    assert measured.margin == pytest.approx(ranked[0] - ranked[1], rel=1e-3, abs=1e-6)
    assert measured.normalised_entropy == pytest.approx(own_entropy, rel=1e-3, abs=1e-6)
    assert measured.top_k_mass == pytest.approx(ranked[:5].sum(), rel=1e-4)
    assert row[chosen] - measured.log_total == pytest.approx(np.log(probabilities[chosen]), rel=1e-4, abs=1e-4)


def test_measuring_leaves_the_row_as_it_was():
    row = np.linspace(-5, 5, SIZE, dtype=np.float32)
    before = row.copy()
    Meter(SIZE, temperature=2.0, top_k=3).measure(row, 0)
    assert (row == before).all()


def test_a_certain_row_and_a_uniform_row_are_the_ends_of_the_scale():
    certain = np.full(SIZE, -200, np.float32)
    certain[3] = 200
    sure = Meter(SIZE, temperature=1.5, top_k=5).measure(certain, 3)
    assert (sure.probability, sure.margin, sure.normalised_entropy, sure.top_k_mass) == (1.0, 1.0, 0.0, 1.0)
    flat = Meter(SIZE, temperature=1.5, top_k=5).measure(np.zeros(SIZE, np.float32), 3)
    assert flat.normalised_entropy == pytest.approx(1.0, abs=1e-5)
    assert flat.margin == 0.0


@given(st.integers(0, 2**32 - 1), st.integers(1, 20), st.integers(20, 20 * BLOCK + 3))
def test_the_k_largest_are_exactly_those_of_a_full_sort(seed, k, size):
    row = np.random.default_rng(seed).integers(0, 1000, size).astype(np.float32)
    values, places = largest(row, k)
    assert (values == np.sort(row)[::-1][:k]).all()
    assert (row[places] == values).all()
    assert len(set(places.tolist())) == k
