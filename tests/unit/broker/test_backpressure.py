import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.backpressure import Load, overload
from config.settings import BackpressureSettings

LIMITS = BackpressureSettings(
    max_requests=100, max_tokens=10_000, owner_max_requests=40, owner_max_tokens=4_000, longest_retry_after_s=60
)


@pytest.mark.parametrize(
    ("load", "limit", "is_owners", "retry_after_s"),
    [
        (Load(0, 0, 0, 0, 0.0), None, None, None),
        (Load(99, 9_900, 39, 3_900, 10.0), None, None, None),
        (Load(40, 4_000, 40, 4_000, 10.0), "owner_max_requests", True, 10),
        (Load(20, 3_950, 20, 3_950, 10.0), "owner_max_tokens", True, 5),
        (Load(100, 5_000, 0, 0, 10.0), "max_requests", False, 5),
        (Load(50, 9_910, 0, 0, 10.0), "max_tokens", False, 1),
        (Load(100, 5_000, 0, 0, 0.0), "max_requests", False, 60),
        (Load(100, 5_000, 0, 0, 0.001), "max_requests", False, 60),
    ],
)
def test_what_is_over_its_limit_is_named_with_when_to_come_again(load, limit, is_owners, retry_after_s):
    found = overload(load, 100, LIMITS)
    told = (None, None, None) if found is None else (found.limit, found.is_owners, found.retry_after_s)
    assert told == (limit, is_owners, retry_after_s)


@given(st.integers(0, 200), st.integers(0, 20_000), st.floats(0, 1e6), st.integers(1, 50_000))
def test_the_time_to_wait_is_within_its_bounds_and_longer_where_it_drains_more_slowly(requests, tokens, rate, asked):
    fast = overload(Load(requests, tokens, 0, 0, rate), asked, LIMITS)
    slow = overload(Load(requests, tokens, 0, 0, rate / 2), asked, LIMITS)
    assert (fast is None) == (slow is None)
    if fast is not None and slow is not None:
        assert 1 <= fast.retry_after_s <= slow.retry_after_s <= LIMITS.longest_retry_after_s
