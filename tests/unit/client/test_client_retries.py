from datetime import UTC, datetime

import hypothesis.strategies as st
import pytest
from hypothesis import given

from firstdraft.client.retries import IDEMPOTENCY_HEADER, RetryRule, may_repeat, retry_after_s

NOW = datetime(2026, 1, 1, tzinfo=UTC)
RULE = RetryRule(max_retries=3, first_delay_s=1.0, longest_delay_s=3.0, longest_retry_after_s=10.0)


@pytest.mark.parametrize(
    ("retries", "asked", "share", "delay"),
    [
        (0, None, 0.0, 0.0),
        (0, None, 0.5, 0.5),
        (1, None, 0.5, 1.0),
        (2, None, 0.5, 1.5),  # cut to the longest delay
        (3, None, 0.5, None),
        (0, 5.0, 0.0, 5.0),
        (0, 5.0, 0.5, 5.5),
        (0, 11.0, 0.5, None),
    ],
)
def test_the_wait_grows_is_jittered_and_obeys_the_server(retries, asked, share, delay):
    assert RULE.delay_s(retries, asked, share) == delay


@given(st.integers(0, 10), st.none() | st.floats(0, 100), st.floats(0, 1, exclude_max=True))
def test_no_wait_is_shorter_than_asked_or_longer_than_promised(retries, asked, share):
    delay = RULE.delay_s(retries, asked, share)
    if delay is not None:
        assert (asked or 0.0) <= delay <= (asked or 0.0) + RULE.longest_delay_s


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("2", 2.0),
        ("-3", 0.0),
        ("Thu, 01 Jan 2026 00:00:30 GMT", 30.0),
        ("Thu, 01 Jan 2025 00:00:30 GMT", 0.0),
        ("soon", None),
    ],
)
def test_retry_after_is_read_as_seconds_or_as_a_date(value, seconds):
    assert retry_after_s(value, NOW) == seconds


@pytest.mark.parametrize(
    ("method", "headers", "repeatable"),
    [("GET", {}, True), ("DELETE", {}, True), ("POST", {}, False), ("POST", {IDEMPOTENCY_HEADER: "k"}, True)],
)
def test_only_what_is_safe_is_repeated(method, headers, repeatable):
    assert may_repeat(method, headers) is repeatable
