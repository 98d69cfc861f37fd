"""Whether a Redis server is configured not to lose data. Checked once, when a process starts."""

import logging
from collections.abc import Mapping
from typing import Any

from redis import Redis

from config.settings import InvalidSettings, Settings

log = logging.getLogger(__name__)

#: The first version of Redis and Valkey with WAITAOF.
FSYNC_VERSION = (7, 2)


def complaints(info: Mapping[str, Any], *, fsync: bool) -> list[str]:
    """What is wrong with a server's configuration, given its INFO. Pure."""
    found = []
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        found.append(f"maxmemory-policy is {policy}: jobs could be evicted; set it to noeviction")
    if not info.get("aof_enabled"):
        found.append("appendonly is no: a restart would lose jobs; set it to yes")
    version = str(info.get("valkey_version") or info.get("redis_version", "0"))
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if fsync and numbers < FSYNC_VERSION:
        found.append(f"its version is {version}: requests.durability=fsync needs 7.2 or newer")
    return found


def check_server(redis: Redis, settings: Settings) -> None:
    """If the server is unsuitable, log a warning or raise `InvalidSettings`, depending on `redis.unsuitable`.

    With `requests.durability: fsync` it always raises. Raises Redis's own error if the server is away.
    """
    fsync = settings.requests.durability == "fsync"
    found = complaints(redis.info("memory", "persistence", "server"), fsync=fsync)
    if found and (fsync or settings.redis.unsuitable == "refuse"):
        raise InvalidSettings(f"the Redis server is unsuitable: {'; '.join(found)}")
    for complaint in found:
        log.warning("redis_unsuitable %s", complaint)
