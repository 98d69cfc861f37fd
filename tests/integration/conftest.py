"""Fixtures of tests on a real Redis server: stores, and whole processes of ours."""

import pytest
from redis import Redis

from broker import keys
from broker.records import Lifetimes, RequestStore

LIFETIMES = Lifetimes(result_ttl_s=60, unfinished_ttl_s=600, lease_s=10.0, max_attempts=3)


@pytest.fixture
def store(redis_connection: Redis) -> RequestStore:
    return RequestStore(redis_connection, LIFETIMES)


@pytest.fixture
def make_due(redis_connection: Redis):
    """As if the time had come to look after the request: its lease has lapsed, or its next check is due."""

    def due(request_id: str) -> None:
        assert redis_connection.zadd(keys.leases(), {request_id: 1.0}, xx=True, ch=True) == 1

    return due
