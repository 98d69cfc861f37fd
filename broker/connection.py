"""Connections to Redis, made one way."""

from redis import Redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import BusyLoadingError, OutOfMemoryError, ReadOnlyError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from config.settings import InvalidSettings, RedisSettings

#: What Redis answers when it cannot take anything for a while; every other error of it is a bug of ours.
REDIS_AWAY = (RedisConnectionError, RedisTimeoutError, BusyLoadingError, OutOfMemoryError, ReadOnlyError)
#: Seconds to wait for a connection, and for an answer that is not a blocking read.
CONNECT_TIMEOUT_S = 2.0
ANSWER_TIMEOUT_S = 30.0
#: Seconds to wait for an answer of the prefix index, which requests can do without.
INDEX_TIMEOUT_S = 1.0
#: Seconds between looks at an idle connection's health.
HEALTH_CHECK_S = 15


def connect(url: str, *, retries: int = 3, timeout_s: float = ANSWER_TIMEOUT_S) -> Redis:
    """A client with a pool, safe to share between threads. Connects at the first command; `unix://` URLs work too."""
    return Redis.from_url(
        url,
        socket_connect_timeout=CONNECT_TIMEOUT_S,
        socket_timeout=timeout_s,
        health_check_interval=HEALTH_CHECK_S,
        retry=Retry(ExponentialWithJitterBackoff(base=0.05, cap=0.5), retries),
    )


def connect_configured(settings: RedisSettings) -> Redis:
    """A client of the server that the settings name. Raises `InvalidSettings` where they name none."""
    if settings.url is None:
        raise InvalidSettings("redis.url is not set: give REDIS_URL, or start everything with `firstdraft up`")
    return connect(settings.url.get_secret_value())


def connect_index(settings: RedisSettings) -> Redis:
    """A client of the prefix index's server, which gives up soon. Raises `InvalidSettings` where there is none."""
    if settings.index_url is None:
        return connect_configured(settings)
    return connect(settings.index_url.get_secret_value(), retries=0, timeout_s=INDEX_TIMEOUT_S)
