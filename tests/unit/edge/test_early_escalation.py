import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.settings import EarlyEscalationSettings
from schemas.drafts import TokenFigures
from schemas.requests import ConfidenceRule, Pooling
from workers.edge.confidence import assess
from workers.edge.early_escalation import EarlyEscalation

rows = st.lists(st.tuples(*[st.floats(0, 1)] * 5), min_size=1, max_size=20)


def settings(**changes):
    plain = {"enabled": True, "min_tokens": 4, "window_tokens": 4, "collapse_share": 0.0}
    return EarlyEscalationSettings(**(plain | changes))


def table(values):
    columns = list(zip(*values, strict=True))
    return TokenFigures(**dict(zip(TokenFigures.model_fields, columns, strict=True)))


def constant(value, count):
    return table([(value, value, value, 1 - value, value)] * count)


rules = st.builds(
    ConfidenceRule,
    weights=st.just({"max_prob": 0.5, "entropy": 0.2, "margin": 0.3}),
    pooling=st.sampled_from(Pooling),
    quantile=st.floats(0.05, 0.95),
)


@given(rows, rows, rules)
def test_no_draft_ends_surer_than_the_best_that_was_still_possible(begun, rest, rule):
    early = EarlyEscalation(rule, settings(), max_tokens=len(begun) + len(rest))
    early.should_escalate(table(begun))
    assert assess(table(begun + rest), rule).value <= early.upper_bound() + 1e-6
    assert assess(table(begun), rule).value <= early.upper_bound() + 1e-6


def test_a_draft_that_cannot_reach_the_threshold_any_more_should_escalate():
    rule = ConfidenceRule(strategy="max_prob", threshold=0.6)
    early = EarlyEscalation(rule, settings(), max_tokens=20)
    assert not early.should_escalate(constant(0.1, 8))
    assert early.should_escalate(constant(0.1, 1))


def test_under_the_minimum_one_bad_token_is_enough():
    rule = ConfidenceRule(strategy="max_prob", threshold=0.6, pooling=Pooling.MINIMUM)
    assert EarlyEscalation(rule, settings(), max_tokens=1000).should_escalate(constant(0.5, 1))


def test_a_collapsed_window_gives_up_a_draft_that_is_unsure():
    rule = ConfidenceRule(strategy="max_prob", threshold=0.6)
    early = EarlyEscalation(rule, settings(collapse_share=0.5), max_tokens=1000)
    assert not early.should_escalate(constant(0.4, 4))
    assert early.should_escalate(constant(0.2, 4))


def test_a_collapsed_window_alone_does_not_give_up_a_draft_that_is_still_sure():
    rule = ConfidenceRule(strategy="max_prob", threshold=0.6)
    early = EarlyEscalation(rule, settings(collapse_share=0.5), max_tokens=1000)
    early.should_escalate(constant(1.0, 40))
    assert not early.should_escalate(constant(0.1, 4))
    assert assess(table([*[(1.0,) * 5] * 40, *[(0.1,) * 5] * 4]), rule).sure


@pytest.mark.parametrize(("num_tokens", "due"), [(3, False), (4, True), (100, True)])
def test_a_draft_is_looked_at_from_its_minimum_length_on(num_tokens, due):
    early = EarlyEscalation(ConfidenceRule(strategy="max_prob"), settings(), max_tokens=100)
    assert early.is_due(num_tokens) is due


def test_a_draft_is_not_looked_at_at_every_token():
    early = EarlyEscalation(ConfidenceRule(strategy="max_prob", threshold=0.0), settings(), max_tokens=100)
    early.should_escalate(constant(0.9, 4))
    assert [early.is_due(n) for n in (5, 7, 8)] == [False, False, True]
