"""Limits the requests of each API key, counted in Redis for all gateway processes together (Flask-Limiter)."""

from flask import Flask
from flask_limiter import Limiter
from redis import ConnectionPool

from broker.api_keys import RATE_LIMIT_PREFIX
from gateway.http.authentication import asking_key


def add_rate_limits(app: Flask, rate: str, pool: ConnectionPool) -> None:
    """Answer 429 with a Retry-After above the rate. Requests without a key, where none is needed, are not counted.

    Call it after `add_authentication`.
    """
    Limiter(
        asking_key,
        app=app,
        application_limits=[rate],
        application_limits_exempt_when=lambda: not asking_key(),
        headers_enabled=True,
        strategy="fixed-window",  # uses Redis's clock alone; a moving window would compare the hosts' clocks
        storage_uri="redis://",  # the pool knows the server
        storage_options={"connection_pool": pool, "key_prefix": RATE_LIMIT_PREFIX},  # type: ignore[dict-item]
    )
