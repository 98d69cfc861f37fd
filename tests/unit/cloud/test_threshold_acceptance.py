import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.requests import Sampling
from workers.cloud.threshold_acceptance import accepted_shortfalls, can_be_scored, cut_at_stop, partial_stop

LOGPROBS = st.lists(st.tuples(st.floats(-20.0, 0.0), st.floats(-20.0, 0.0)), max_size=40)
PARTS = st.lists(st.text("ab", max_size=3), max_size=20)
STOPS = st.lists(st.text("ab", min_size=1, max_size=4), max_size=3)


@given(LOGPROBS, st.floats(0.0, 1.0))
def test_what_stands_is_a_prefix_of_tokens_that_are_each_likely_enough(pairs, threshold):
    chosen = [min(pair) for pair in pairs]
    likeliest = [max(pair) for pair in pairs]
    accepted = accepted_shortfalls(chosen, likeliest, threshold)
    likely = [
        c - f >= (math.log(threshold) if threshold else -math.inf) for c, f in zip(chosen, likeliest, strict=True)
    ]
    assert len(accepted) == (likely.index(False) if False in likely else len(likely))
    assert all(shortfall >= 0.0 for shortfall in accepted)


def test_a_threshold_of_one_lets_likeliest_alone_stand():
    assert accepted_shortfalls([-0.1, -0.7], [-0.1, -0.69], 1.0) == [0.0]


def test_a_threshold_of_zero_lets_everything_stand():
    accepted = accepted_shortfalls([-9.0, -30.0], [-0.1, -0.1], 0.0)
    assert accepted == pytest.approx([8.9, 29.9])


def token_by_token(parts: list[str], stops: list[str]) -> tuple[int, int] | None:
    """What a model that writes one character after the other would do."""
    text = ""
    for index, part in enumerate(parts):
        for character in part:
            text += character
            ends = [len(text) - len(stop) for stop in stops if text.endswith(stop)]
            if ends:
                return index + 1, min(ends)
    return None


@given(PARTS, STOPS)
def test_a_stop_string_cuts_as_if_written_token_by_token(parts, stops):
    assert cut_at_stop([len(part) for part in parts], "".join(parts), stops) == token_by_token(parts, stops)


@given(st.text("ab", max_size=10), STOPS)
def test_the_text_held_back_is_the_longest_possible_beginning_of_a_stop_string(text, stops):
    size = partial_stop(text, stops)
    begun = [n for n in range(1, len(text) + 1) if any(len(stop) > n and stop.startswith(text[-n:]) for stop in stops)]
    assert size == max(begun, default=0)


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.1},
        {"frequency_penalty": 0.5},
        {"presence_penalty": 0.5},
        {"logit_bias": {5: 1.0}},
        {"grammar": 'root ::= "a"'},
        {"json_schema": {}},
    ],
)
def test_options_that_act_while_writing_are_verified_exactly(options):
    assert not can_be_scored(Sampling(**options))


def test_plain_sampling_can_be_scored():
    assert can_be_scored(Sampling(temperature=0.7, top_p=0.9, stop=("x",), max_tokens=5, logprobs=True))
