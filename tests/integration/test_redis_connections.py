"""The pools of connections to Redis: a thread that finds none free waits, and is never told that Redis is away."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from broker.connection import REDIS_AWAY, NoFreeConnection, connect
from tests.polling import joined, until


def test_more_threads_than_connections_wait_for_each_other(redis_url):
    redis = connect(redis_url, max_connections=4)
    try:
        with ThreadPoolExecutor(64) as pool:
            counts = list(pool.map(lambda _: redis.incr("counted"), range(1_000)))
        assert sorted(counts) == list(range(1, 1_001))
        assert int(redis.info("clients")["connected_clients"]) < 64
    finally:
        redis.delete("counted")
        redis.close()


def test_a_pool_that_is_used_up_says_so_and_does_not_blame_redis(redis_url):
    redis = connect(redis_url, max_connections=1, pool_wait_s=0.05)
    blocked = threading.Thread(target=redis.blpop, args=(["never-pushed"], 1))
    try:
        redis.ping()
        blocked.start()
        with pytest.raises(NoFreeConnection, match="All 1 connections"):
            until(lambda: redis.ping() and not blocked.is_alive(), "the one connection is taken")
        assert not issubclass(NoFreeConnection, REDIS_AWAY)
    finally:
        joined(blocked)
        redis.close()


def test_a_server_that_does_not_answer_is_away(tmp_path):
    redis = connect(f"unix://{tmp_path}/nothing.sock", retries=0)
    with pytest.raises(REDIS_AWAY):
        redis.ping()
    redis.close()
