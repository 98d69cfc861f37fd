import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.drafts import TokenFigures
from schemas.requests import ConfidenceRule, Pooling
from tests.own_strategies import own_strategies
from tests.polling import joined
from workers.edge.confidence import (
    StrategyFailed,
    UnknownStrategy,
    _users_scores,
    assess,
    installed,
    members,
    pool,
)
from workers.edge.early_escalation import EarlyEscalation

scores = st.lists(st.floats(0, 1), min_size=1, max_size=30)


def table(rows):
    columns = tuple(zip(*rows, strict=True)) if rows else ((),) * 5
    return TokenFigures(
        probability=columns[0],
        scaled_probability=columns[1],
        margin=columns[2],
        normalised_entropy=columns[3],
        top_k_mass=columns[4],
    )


FIGURES = table([(0.9, 0.8, 0.7, 0.2, 0.95), (0.5, 0.4, 0.1, 0.6, 0.85)])


@pytest.mark.parametrize(
    ("strategy", "value"),
    [("max_prob", 0.7), ("entropy", 0.6), ("temperature", 0.6), ("top_k_agg", 0.9), ("margin", 0.4)],
)
def test_each_strategy_is_installed_and_scores_its_own_column(strategy, value):
    report = assess(FIGURES, ConfidenceRule(strategy=strategy, threshold=0.5))
    assert report.value == pytest.approx(value)
    assert report.parts == {strategy: report.value}
    assert report.sure is (value >= 0.5)


def test_an_ensemble_is_the_weighted_mean_and_shows_its_parts():
    report = assess(FIGURES, ConfidenceRule(weights={"max_prob": 3, "margin": 1, "entropy": 0}))
    assert report.value == pytest.approx(0.75 * 0.7 + 0.25 * 0.4)
    assert report.parts == pytest.approx({"max_prob": 0.7, "margin": 0.4})


@pytest.mark.parametrize(
    ("pooling", "value"),
    [(Pooling.MEAN, 0.5), (Pooling.LOG_MEAN, (0.2 * 0.5 * 0.8) ** (1 / 3)), (Pooling.MINIMUM, 0.2)],
)
def test_pooling_by_hand(pooling, value):
    assert pool([0.2, 0.5, 0.8], pooling, 0.1) == pytest.approx(value)


def test_a_quantile_lies_between_the_two_nearest_scores():
    assert pool([0.2, 0.4, 0.8], Pooling.QUANTILE, 0.25) == pytest.approx(0.3)


@given(scores, st.sampled_from(Pooling), st.floats(0.01, 0.99))
def test_a_pooled_score_lies_between_the_lowest_and_the_highest(values, pooling, quantile):
    pooled = pool(values, pooling, quantile)
    assert 0.0 <= pooled <= 1.0
    assert min(values) - 1e-6 <= pooled <= max(values) + 1e-6


def test_a_draft_without_tokens_is_not_sure():
    report = assess(table([]), ConfidenceRule(strategy="max_prob", threshold=0.1))
    assert (report.value, report.sure) == (0.0, False)


def test_an_unknown_strategy_is_named_with_those_that_exist():
    with pytest.raises(UnknownStrategy, match=r"'oracle' is not installed; there are .*ensemble.*margin"):
        members(ConfidenceRule(strategy="oracle"))


@pytest.mark.parametrize("weights", [{}, {"margin": 0.0}])
def test_an_ensemble_of_nothing_is_refused(weights):
    with pytest.raises(UnknownStrategy, match="no strategy with a weight above 0"):
        members(ConfidenceRule(weights=weights))


def test_the_registry_holds_the_five_strategies_of_the_documentation():
    assert {"max_prob", "entropy", "temperature", "top_k_agg", "margin"} <= set(installed())


def test_early_escalation_is_possible_only_where_every_strategy_is_built_in(tmp_path):
    with own_strategies(tmp_path):
        assert EarlyEscalation.is_possible(ConfidenceRule(weights={"max_prob": 0.5, "margin": 0.5}))
        assert not EarlyEscalation.is_possible(ConfidenceRule(weights={"max_prob": 0.5, "cautious": 0.5}))


def test_a_package_that_cannot_be_imported_hurts_no_rule_that_does_not_name_it(tmp_path):
    with own_strategies(tmp_path):
        assert assess(FIGURES, ConfidenceRule(strategy="margin", threshold=0.3)).sure
        with pytest.raises(StrategyFailed, match="no_such_module"):
            assess(FIGURES, ConfidenceRule(strategy="missing"))


@pytest.mark.parametrize("strategy", ["stuck", "spinning"])
def test_a_strategy_has_limited_time_and_leaves_no_thread_behind(tmp_path, strategy):
    with own_strategies(tmp_path):
        with pytest.raises(StrategyFailed, match=f"'{strategy}' failed: it took more than 0.05 s"):
            _users_scores(installed()[strategy], FIGURES, limit_s=0.05)
        for thread in threading.enumerate():
            if thread.name == f"confidence-{strategy}":
                joined(thread)
