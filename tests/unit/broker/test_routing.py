import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.routing import COMPARED, Candidate, Demand, choose, shortlist
from schemas.routing_decision import RoutingPolicy, RoutingReason

DEMAND = Demand(prompt_tokens=1000, writing_tokens=100)


def candidate(worker, **known):
    return Candidate(worker, capacity=16, **known)


def route(candidates, policy=RoutingPolicy.PREFIX, demand=DEMAND, seed=0, max_waiting=32):
    return choose(demand, candidates, policy, max_waiting, random.Random(seed))


candidates = st.lists(
    st.builds(
        Candidate,
        worker=st.uuids().map(str),
        capacity=st.integers(1, 32),
        speed=st.none() | st.floats(1, 10_000),
        waiting_tokens=st.floats(-10, 100_000),
        num_jobs=st.integers(0, 80),
        cached_tokens=st.integers(0, 2000),
    ),
    unique_by=lambda known: known.worker,
    max_size=8,
)


@pytest.mark.parametrize(
    ("others", "chosen", "reason"),
    [
        ({"a": {"cached_tokens": 900}, "b": {}}, "a", RoutingReason.PREFIX),
        # A cached prefix attracts as much as it saves, and no more.
        ({"a": {"cached_tokens": 900, "waiting_tokens": 3400}, "b": {}}, "a", RoutingReason.PREFIX),
        ({"a": {"cached_tokens": 900, "waiting_tokens": 3800}, "b": {}}, "b", RoutingReason.LEAST_LOADED),
        # So does what it was sent of late above the mean.
        ({"a": {"cached_tokens": 200, "recent_tokens": 600}, "b": {}}, "a", RoutingReason.PREFIX),
        ({"a": {"cached_tokens": 200, "recent_tokens": 1000}, "b": {}}, "b", RoutingReason.LEAST_LOADED),
        # Speed decides where all else is the same.
        ({"a": {"speed": 100.0}, "b": {"speed": 500.0}}, "b", RoutingReason.LEAST_LOADED),
        ({"a": {"speed": 100.0, "cached_tokens": 900}, "b": {"speed": 500.0}}, "a", RoutingReason.PREFIX),
        # A worker that has just started is taken to be like the others.
        ({"a": {"speed": 300.0, "waiting_tokens": 500}, "b": {}}, "b", RoutingReason.LEAST_LOADED),
        # A queue that is too long is passed over, whatever is cached there.
        (
            {"a": {"cached_tokens": 1000, "num_jobs": 48}, "b": {"waiting_tokens": 9000}},
            "b",
            RoutingReason.LEAST_LOADED,
        ),
        ({"a": {"num_jobs": 48}}, None, RoutingReason.ALL_FULL),
        ({}, None, RoutingReason.NO_WORKER),
    ],
)
def test_the_worker_that_will_have_read_the_prompt_first_is_chosen(others, chosen, reason):
    answer = route([candidate(name, **known) for name, known in others.items()])
    assert (answer.worker, answer.reason) == (chosen, reason)


def test_least_loaded_looks_past_the_cache_and_random_past_everything():
    known = [candidate("a", cached_tokens=900, waiting_tokens=300), candidate("b")]
    assert route(known, RoutingPolicy.LEAST_LOADED).worker == "b"
    by_lot = {route(known, RoutingPolicy.RANDOM, seed=seed).worker for seed in range(20)}
    assert by_lot == {"a", "b"}


def test_ties_are_broken_by_lot_also_where_measured_speeds_differ_somewhat():
    known = [candidate("a", speed=400.0), candidate("b", speed=600.0), candidate("c", waiting_tokens=20)]
    assert {route(known, seed=seed).worker for seed in range(40)} == {"a", "b", "c"}


def test_a_route_says_what_was_known():
    known = [candidate("a", cached_tokens=1200, waiting_tokens=500, speed=1000.0), candidate("b", num_jobs=99)]
    answer = route(known)
    assert (answer.cached_tokens, answer.most_cached_tokens, answer.work_tokens) == (1000, 1200, 100)
    assert (answer.cost_s, answer.num_candidates, answer.num_passed_over) == (0.5, 1, 1)


@given(candidates, st.sampled_from(RoutingPolicy), st.integers(1, 5000), st.integers())
def test_a_worker_is_chosen_whenever_one_is_open_and_never_a_full_one(known, policy, tokens, seed):
    answer = route(known, policy, Demand(tokens, 50), seed, max_waiting=8)
    open_ones = {one.worker for one in known if one.num_jobs < one.capacity + 8}
    assert answer.worker in open_ones if open_ones else answer.worker is None
    assert 50 <= answer.work_tokens <= tokens + 50


@given(candidates.filter(bool), st.integers(1, 5000), st.integers())
def test_no_open_worker_would_have_been_done_sooner_by_more_than_a_tie(known, tokens, seed):
    known = [replace(one, speed=100.0, num_jobs=0) for one in known]

    def cost_s(one):
        return (4 * (tokens - min(one.cached_tokens, tokens)) + max(one.waiting_tokens, 0)) / 100.0

    answer = route(known, demand=Demand(tokens, 50), seed=seed)
    assert answer.cost_s <= min(map(cost_s, known)) + 0.1 * tokens / 100.0 + 1e-9


def test_few_workers_are_all_compared_and_of_many_those_that_hold_most_and_some_by_lot():
    workers = [f"w{number}" for number in range(1000)]
    assert shortlist(workers[:COMPARED], {}, random.Random(0)) == workers[:COMPARED]
    held = {f"w{number}": 1 for number in range(500)} | {"w7": 20, "w8": 10}
    compared = shortlist(workers, held, random.Random(0))
    assert compared[:2] == ["w7", "w8"]
    assert len(set(compared)) == len(compared) <= COMPARED
    assert any(worker not in held for worker in compared)
    assert compared != shortlist(workers, held, random.Random(1))


def test_the_demand_counts_no_more_writing_than_is_allowed():
    assert Demand.of(num_bytes=401, max_tokens=8) == Demand(prompt_tokens=101, writing_tokens=32)
    assert Demand.of(num_bytes=400, max_tokens=4000).writing_tokens == 256
