import pytest

from broker.suitability import complaints

GOOD = {"maxmemory_policy": "noeviction", "aof_enabled": 1, "redis_version": "7.2.4"}


@pytest.mark.parametrize(
    ("changed", "fsync", "found"),
    [
        ({}, False, []),
        ({}, True, []),
        ({"maxmemory_policy": "allkeys-lru"}, False, ["maxmemory-policy is allkeys-lru"]),
        ({"aof_enabled": 0}, False, ["appendonly is no"]),
        ({"redis_version": "7.0.15"}, False, []),
        ({"redis_version": "7.0.15"}, True, ["its version is 7.0.15"]),
        ({"redis_version": "7.2.4", "valkey_version": "9.1.2"}, True, []),
        ({"maxmemory_policy": "volatile-ttl", "aof_enabled": 0}, False, ["maxmemory-policy", "appendonly"]),
    ],
)
def test_a_server_that_could_lose_jobs_is_complained_of(changed, fsync, found):
    told = complaints(GOOD | changed, fsync=fsync)
    assert len(told) == len(found)
    assert all(words in complaint for words, complaint in zip(found, told, strict=True))
