"""How this project connects to Redis.

Sets every option of redis-py whose default differs between the supported versions.
"""

from queue import Empty, LifoQueue
from typing import Any

from redis import BlockingConnectionPool, Redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import BusyLoadingError, OutOfMemoryError, ReadOnlyError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from config.settings import InvalidSettings, RedisSettings

#: Redis's errors while it is down, loading, full or read-only. Every other error of Redis is a bug in this project.
REDIS_AWAY = (RedisConnectionError, RedisTimeoutError, BusyLoadingError, OutOfMemoryError, ReadOnlyError)
#: How the replies begin by which a Redis server refuses writes for a while, and for which redis-py has no class.
REFUSING = ("MISCONF", "NOREPLICAS", "MASTERDOWN", "BUSY ")
#: Seconds to wait for a connection, and for the answer to a command that does not block.
CONNECT_TIMEOUT_S = 2.0
ANSWER_TIMEOUT_S = 30.0
#: Seconds to wait for an answer of the prefix index, without which requests can be routed too.
INDEX_TIMEOUT_S = 1.0
#: Seconds after which an idle connection is checked before its next use.
HEALTH_CHECK_S = 15
#: The version of Redis's protocol. redis-py's default is 2 before its version 8, and 3 since.
PROTOCOL = 2
#: Connections of a client by default.
NUM_CONNECTIONS = 64
#: Connections for the threads of a process that do not serve requests: the reaper, presence, heartbeats, the event
#: hub, batches, webhooks, health.
NUM_BACKGROUND_CONNECTIONS = 64
#: Seconds to wait for a free connection: as long as one command of another thread may take.
POOL_WAIT_S = ANSWER_TIMEOUT_S


def is_away(error: RedisError) -> bool:
    """Whether Redis cannot take anything for a while, for a reason that is not the caller's."""
    return isinstance(error, REDIS_AWAY) or str(error).startswith(REFUSING)


class NoFreeConnection(RedisError):
    """All connections of the pool were in use for too long. Redis is not at fault: the pool is too small."""


class _FreeConnections(LifoQueue[Any]):
    """The pool's free connections. Distinguishes an exhausted pool from a server that does not answer."""

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Raises `NoFreeConnection` instead of `Empty`, from which redis-py would make a `ConnectionError`."""
        try:
            return super().get(block, timeout)
        except Empty:
            raise NoFreeConnection(
                f"All {self.maxsize} connections to Redis were in use for {timeout or 0:g} s."
            ) from None


def connect(
    url: str,
    *,
    retries: int = 3,
    timeout_s: float = ANSWER_TIMEOUT_S,
    max_connections: int = NUM_CONNECTIONS,
    pool_wait_s: float = POOL_WAIT_S,
) -> Redis:
    """A client with a connection pool, safe on any thread. Connects at the first command; takes `unix://` URLs too.

    If all `max_connections` are in use, a command waits for one; after `pool_wait_s` it raises `NoFreeConnection`.
    """
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=max_connections,
        timeout=pool_wait_s,
        queue_class=_FreeConnections,
        protocol=PROTOCOL,
        socket_connect_timeout=CONNECT_TIMEOUT_S,
        socket_timeout=timeout_s,
        health_check_interval=HEALTH_CHECK_S,
        retry=Retry(ExponentialWithJitterBackoff(base=0.05, cap=0.5), retries),
    )
    return Redis.from_pool(pool)


def connect_configured(settings: RedisSettings, num_threads: int = 1) -> Redis:
    """A client of the configured server. Raises `InvalidSettings` if none is configured.

    `num_threads`: threads that serve requests. Each gets a connection, in addition to those of background threads.
    """
    if settings.url is None:
        raise InvalidSettings("redis.url is not set: give REDIS_URL, or start everything with `firstdraft up`")
    return connect(settings.url.get_secret_value(), max_connections=num_threads + NUM_BACKGROUND_CONNECTIONS)


def connect_index(settings: RedisSettings, num_threads: int = 1) -> Redis:
    """A client of the prefix index's server, with a short timeout. Raises `InvalidSettings` if none is configured."""
    if settings.index_url is None:
        return connect_configured(settings, num_threads)
    return connect(
        settings.index_url.get_secret_value(),
        retries=0,
        timeout_s=INDEX_TIMEOUT_S,
        max_connections=num_threads + NUM_BACKGROUND_CONNECTIONS,
        pool_wait_s=INDEX_TIMEOUT_S,
    )
