"""What requests that have ended leave behind, in a whole running system."""

from contextlib import closing

import pytest

from broker import keys
from broker.connection import connect
from firstdraft.client.sync import Client
from tests.integration.test_key_lifetimes import is_permanent
from tests.polling import until


@pytest.fixture
def redis(system):
    with closing(connect(system.redis_url)) as connection:
        yield connection


@pytest.fixture
def client(system):
    with Client(system.url) as one:
        yield one


def rq_keys(redis):
    return {key.decode() for key in redis.scan_iter("rq:*", count=1000)}


def passing(redis):
    """RQ's keys that are about one job."""
    return {key for key in rq_keys(redis) if key.startswith(("rq:job:", "rq:results:", "rq:execution"))}


def test_of_requests_that_have_ended_nothing_of_rqs_is_left(client, redis):
    others = passing(redis)  # other tests' jobs may still run in this system
    for _ in client.infer_many(["unsure beta", "alpha"] * 10, max_tokens=2):
        pass
    until(lambda: passing(redis) <= others, "RQ has closed all jobs")
    before = rq_keys(redis)
    for _ in client.infer_many(["unsure beta", "alpha", "gamma"] * 20, max_tokens=2):
        pass
    until(lambda: passing(redis) <= others, "RQ has closed all jobs")
    assert rq_keys(redis) <= before
    sizes = {key: redis.zcard(key) for key in before - others if redis.type(key) == b"zset"}
    assert {key for key, size in sizes.items() if size and key not in {"rq:wip:edge", "rq:wip:verify"}} == set()


def test_in_a_running_system_only_what_is_said_to_be_permanent_is(client, redis):
    client.infer("unsure beta", max_tokens=2)
    found = [key.decode() for key in redis.scan_iter(f"{keys.PREFIX}*", count=1000)]
    assert found
    assert [key for key in found if redis.ttl(key) == -1 and not is_permanent(key)] == []
