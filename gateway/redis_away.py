"""What Redis answers when it cannot take anything; every other error of it is a bug of ours."""

from redis.exceptions import BusyLoadingError, OutOfMemoryError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

REDIS_AWAY = (RedisConnectionError, RedisTimeoutError, BusyLoadingError, OutOfMemoryError)
