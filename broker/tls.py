"""Checks that a Redis URL's scheme (TLS or not) matches its server.

A TLS client of a plain server times out, and a plain client of a TLS server sees its connection closed. Both look like
a server that is temporarily away, so they are checked separately when a process starts.
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

#: First bytes of Redis's answer to PING: a result or an error.
ANSWERS = (b"+", b"-")


def check_tls(settings: RedisSettings) -> None:
    """Raise `InvalidSettings` for a URL whose scheme does not match its server. Blocks for at most a few seconds.

    Does not raise for a server that cannot be reached or that refuses the password.
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
    """Whether a Redis server answers at the URL, even with an error."""
    client = Redis.from_url(
        url,
        socket_connect_timeout=CONNECT_TIMEOUT_S,
        socket_timeout=CONNECT_TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
    )
    with closing(client):
        try:
            client.ping()
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
    """Whether the server answers a TLS handshake, even with an alert. Its certificate is not checked."""
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
