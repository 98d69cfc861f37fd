import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.cloud.proposal_length import AcceptanceTable, Trust, draft_bin, draft_survival, proposal_lengths
from workers.runtime.step_cost import StepCost

CHANCES = st.floats(0.0, 0.999)
SURVIVALS = st.lists(CHANCES, max_size=24).map(lambda chances: tuple(sorted(chances, reverse=True)))
BATCHES = st.lists(SURVIVALS, min_size=1, max_size=8)


def a_cost(base_s: float, token_s: float) -> StepCost:
    cost = StepCost(0.02)
    for _ in range(40):
        for tokens in (1, 9, 33, 65):
            cost.observe(tokens, base_s + token_s * tokens)
    return cost


def rate(batch: list[tuple[float, ...]], counts: list[int], cost: StepCost) -> float:
    expected = len(batch) + sum(sum(row[:count]) for row, count in zip(batch, counts, strict=True))
    return expected / (cost.base_s + cost.token_s * (len(batch) + sum(counts)))


@given(BATCHES, st.data())
def test_no_other_number_of_proposals_promises_more_tokens_per_second(batch, data):
    cost = a_cost(0.07, 0.002)
    other = [data.draw(st.integers(0, len(row))) for row in batch]
    assert rate(batch, proposal_lengths(batch, cost), cost) >= rate(batch, other, cost) - 1e-9


@given(BATCHES)
def test_no_more_is_proposed_than_the_draft_has(batch):
    counts = proposal_lengths(batch, a_cost(0.07, 0.002))
    assert all(0 <= count <= len(row) for count, row in zip(counts, batch, strict=True))


@pytest.mark.parametrize("chance", [0.1, 0.5, 0.9])
def test_a_fuller_batch_gets_fewer_proposals_each(chance):
    cost = a_cost(0.07, 0.002)
    row = tuple(chance**n for n in range(1, 25))
    counts = [proposal_lengths([row] * rows, cost)[0] for rows in (1, 8, 64)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1]


def test_where_tokens_cost_nothing_all_are_proposed():
    row = (0.9, 0.5, 0.1)
    assert proposal_lengths([row], a_cost(0.07, 0.0)) == [3]


def survival(table: AcceptanceTable, trust: Trust, probabilities: list[float]) -> tuple[float, ...]:
    return draft_survival(probabilities, unconfirmed=False, table=table, trust=trust)


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=24))
def test_the_chance_of_a_run_falls_with_its_length(probabilities):
    chances = survival(AcceptanceTable(), Trust(), probabilities)
    assert list(chances) == sorted(chances, reverse=True)


def test_acceptances_raise_the_chance_and_rejections_lower_it():
    table, trusted, doubted = AcceptanceTable(), Trust(), Trust()
    for _ in range(5):
        trusted.learn(0.8, accepted=True)
        doubted.learn(0.8, accepted=False)
    chances = [survival(table, trust, [0.8])[0] for trust in (doubted, Trust(), trusted)]
    assert chances == sorted(chances)
    assert chances[0] < chances[1] / 2


def test_a_token_that_the_edge_was_unsure_of_has_less_chance():
    chances = [survival(AcceptanceTable(), Trust(), [p])[0] for p in (0.1, 0.3, 0.6, 0.99)]
    assert chances == sorted(chances)


def test_the_table_learns_what_the_edges_probability_is_worth():
    table = AcceptanceTable()
    for _ in range(200):
        table.learn(draft_bin(0.99, unconfirmed=False), accepted=False)
    assert table.expected(draft_bin(0.99, unconfirmed=False)) < 0.2
    assert table.expected(draft_bin(0.6, unconfirmed=False)) > 0.5


def test_the_cost_of_a_step_is_found_again():
    cost = a_cost(0.08, 0.0015)
    assert cost.token_s == pytest.approx(0.0015, rel=0.05)
    assert cost.base_s == pytest.approx(0.08, rel=0.05)


def test_one_disturbed_step_hardly_moves_the_cost():
    cost = a_cost(0.08, 0.0015)
    cost.observe(1, 30.0)
    assert cost.base_s == pytest.approx(0.08, rel=0.1)


@given(st.lists(st.tuples(st.integers(1, 500), st.floats(1e-4, 10.0)), max_size=60))
def test_costs_are_never_negative(steps):
    cost = StepCost(0.02)
    for tokens, seconds in steps:
        cost.observe(tokens, seconds)
    assert cost.token_s >= 0.0
    assert cost.base_s > 0.0
