"""The simulator obeys what holds of any workers; its figures are the business of `make bench-routing`."""

from dataclasses import replace

import pytest

from broker.prefix_blocks import canonical_bytes
from experiments.routing_simulator import Machine, Simulation, quantile
from experiments.routing_workload import best_shares, traffic
from schemas.requests import Message
from schemas.routing_decision import RoutingPolicy

MACHINE = Machine(step_s=0.01, answer_s=0.001, prompt_token_s=0.001, attention_s=0.0, reading_attention_s=0.0)


def talks():
    """Conversations of five turns under two system prompts."""
    return [
        (
            Message(role="system", content=f"You are assistant {number % 2}. " * 40),
            *(
                Message(role=role, content=f"{role} {number} {turn} " * 20)
                for turn in range(5)
                for role in ("user", "assistant")
            ),
            Message(role="user", content="thanks"),
        )
        for number in range(8)
    ]


def arrivals(rate=2.0, num_requests=150, num_workers=3):
    return traffic(talks(), rate=rate, num_requests=num_requests, num_workers=num_workers)


def played(policy, traffic, num_workers=3, machine=MACHINE):
    return Simulation(machine, num_workers, policy, max_waiting=32, block_bytes=128).run(traffic)


@pytest.mark.parametrize("policy", RoutingPolicy)
@pytest.mark.parametrize("rate", [0.5, 20.0])
def test_every_request_is_answered_once_and_never_before_it_came(policy, rate):
    sent = arrivals(rate)
    outcome = played(policy, sent)
    assert sorted(request.arrival.at_s for request in outcome.requests) == [arrival.at_s for arrival in sent]
    assert min(outcome.first_token_s) > 0
    assert all(0 <= request.cached_tokens < request.prompt_tokens for request in outcome.requests)


def test_the_same_traffic_gives_the_same_figures():
    assert (
        played(RoutingPolicy.PREFIX, arrivals()).first_token_s == played(RoutingPolicy.PREFIX, arrivals()).first_token_s
    )


def test_no_policy_caches_more_than_one_infinite_cache_would():
    sent = arrivals()
    sizes = [len(canonical_bytes(arrival.messages)) for arrival in sent]
    best = sum(share * size for share, size in zip(best_shares(sent), sizes, strict=True)) / sum(sizes)
    shares = {policy: played(policy, sent).cached_share for policy in RoutingPolicy}
    assert max(shares.values()) <= best
    assert shares[RoutingPolicy.PREFIX] > shares[RoutingPolicy.RANDOM]


def test_one_worker_of_its_own_never_waits_at_a_low_rate():
    sent = arrivals(rate=0.01, num_requests=40)
    outcome = played(RoutingPolicy.PREFIX, sent, num_workers=1)
    whole_s = [request.prompt_tokens * MACHINE.prompt_token_s for request in outcome.requests]
    # A step more for each piece that the prompt is read in; nothing else is in the way.
    assert all(took <= whole + 5 * MACHINE.step_s for took, whole in zip(outcome.first_token_s, whole_s, strict=True))


def test_sixty_workers_share_two_system_prompts_without_a_hot_spot():
    sent = arrivals(rate=30.0, num_requests=900, num_workers=60)
    ours, by_lot = (played(policy, sent, num_workers=60) for policy in (RoutingPolicy.PREFIX, RoutingPolicy.RANDOM))
    assert ours.load_max_over_mean < by_lot.load_max_over_mean


def test_the_best_cache_has_seen_every_turn_but_the_newest():
    sent = arrivals(num_requests=30)
    shares = best_shares(sent)
    assert shares[0] == 0
    assert sum(shares) / len(shares) > 0.5


def test_a_quantile_is_one_of_the_values():
    assert [quantile([3.0, 1.0, 2.0], share) for share in (0.0, 0.5, 0.9, 1.0)] == [1.0, 2.0, 3.0, 3.0]


def test_with_fewer_cells_than_requests_want_they_wait_and_are_all_answered():
    sent = arrivals(rate=20.0)
    plenty, few = (played(RoutingPolicy.RANDOM, sent, machine=replace(MACHINE, in_flight_tokens=n)) for n in (10**6, 1))
    assert len(few.requests) == len(plenty.requests) == len(sent)
    assert quantile(few.first_token_s, 0.9) > quantile(plenty.first_token_s, 0.9)


@pytest.mark.parametrize(
    "dearer", [{"attention_s": 1e-5}, {"reading_attention_s": 1e-5}, {"bytes_per_token": 3.0}], ids=str
)
def test_attention_to_what_came_before_and_more_tokens_take_time(dearer):
    usual, longer = (
        played(RoutingPolicy.RANDOM, arrivals(), machine=machine) for machine in (MACHINE, replace(MACHINE, **dearer))
    )
    assert sum(longer.first_token_s) > sum(usual.first_token_s)
