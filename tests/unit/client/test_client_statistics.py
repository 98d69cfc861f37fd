import hypothesis.strategies as st
import pytest
from hypothesis import given

from firstdraft.client.errors import Unreachable
from firstdraft.client.statistics import NUM_KEPT, Counters, percentile


def test_before_anything_there_are_no_latencies():
    seen = Counters().read()
    assert (seen.requests, seen.errors, seen.retries) == (0, 0, 0)
    assert seen.mean_latency_ms is seen.p50_latency_ms is seen.p99_latency_ms is None


def test_latencies_are_averaged_and_ranked():
    counters = Counters()
    for latency_ms in range(1, 101):
        counters.answered(float(latency_ms))
    seen = counters.read()
    assert seen.mean_latency_ms == 50.5
    assert (seen.p50_latency_ms, seen.p90_latency_ms, seen.p99_latency_ms) == (50.0, 90.0, 99.0)


def test_only_so_many_latencies_are_kept_and_the_mean_is_over_all():
    counters = Counters()
    for _ in range(NUM_KEPT):
        counters.answered(0.0)
    for _ in range(NUM_KEPT):
        counters.answered(10.0)
    assert counters.read().p50_latency_ms == 10.0
    assert counters.read().mean_latency_ms == 5.0


def test_an_error_that_leaves_is_counted_and_goes_on():
    counters = Counters()
    with pytest.raises(Unreachable), counters.counting_errors():
        raise Unreachable("gone")
    assert counters.read().errors == 1


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0.01, 1.0))
def test_a_percentile_is_one_of_the_values_with_enough_at_or_below_it(values, share):
    ascending = sorted(values)
    found = percentile(ascending, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) - 1e-9
