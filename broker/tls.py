"""Whether a Redis server speaks TLS where its URL says so, and only there.

A client that speaks TLS to a server that does not hears nothing until its time is up, and the other way round it hears
that the connection was closed. Both look like a server that is away, which passes; this does not.
"""

import socket
import ssl
from contextlib import closing

from redis import Redis
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.exceptions import AuthenticationError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from broker.connection import CONNECT_TIMEOUT_S
from config.settings import InvalidSettings, RedisSettings

#: How Redis begins an answer to PING, also one that it refuses.
ANSWERS = (b"+", b"-")


def check_tls(settings: RedisSettings) -> None:
    """Raise `InvalidSettings` for a URL that says the wrong thing of its server. Blocks for a few seconds at most.

    A server that cannot be reached, or that refuses the password, is not looked at further.
    """
    for field, url in (("redis.url", settings.url), ("redis.index_url", settings.index_url)):
        if url is not None:
            _check(field, url.get_secret_value())


def _check(field: str, url: str) -> None:
    scheme = url.partition("://")[0]
    if scheme == "unix" or _answers(url):
        return
    parsed = parse_url(url)  # type: ignore[no-untyped-call]
    address = parsed.get("host", "localhost"), int(parsed.get("port", 6379))
    where = f"the server at {address[0]} port {address[1]}"
    if scheme == "rediss" and _speaks_plainly(address):
        raise InvalidSettings(
            f"{field} starts with rediss://, but {where} does not speak TLS: use redis://, or its port that does"
        )
    if scheme == "redis" and _speaks_tls(address):
        raise InvalidSettings(f"{field} starts with redis://, but {where} speaks TLS alone: use rediss://")


def _answers(url: str) -> bool:
    """Whether Redis answers there, whatever it answers."""
    once = Redis.from_url(
        url,
        socket_connect_timeout=CONNECT_TIMEOUT_S,
        socket_timeout=CONNECT_TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
    )
    with closing(once):
        try:
            once.ping()
        except AuthenticationError:
            return True
        except (RedisConnectionError, RedisTimeoutError):
            return False
        except RedisError:
            return True
        return True


def _speaks_plainly(address: tuple[str, int]) -> bool:
    try:
        with socket.create_connection(address, CONNECT_TIMEOUT_S) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith(ANSWERS)
    except OSError:
        return False


def _speaks_tls(address: tuple[str, int]) -> bool:
    """Whether it answers a handshake, if only to ask for a certificate. Whose certificate it has is not asked."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with socket.create_connection(address, CONNECT_TIMEOUT_S) as connection:
            context.wrap_socket(connection).close()
    except ssl.SSLError as error:
        return "ALERT" in (error.reason or "")
    except OSError:
        return False
    return True
