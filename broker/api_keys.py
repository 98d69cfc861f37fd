"""API keys: create, verify, list, revoke. Only hashes are stored; the key itself is shown once."""

import hashlib
import hmac
import secrets
from typing import cast

from redis import Redis

from broker import keys
from schemas import wire
from schemas.owners import ApiKey, Owner

#: Every key starts with this, so that scanners for leaked secrets can recognise it.
KEY_PREFIX = "fd"
#: Prefix of the Redis keys of Flask-Limiter's counters.
RATE_LIMIT_PREFIX = keys.rate_limits()
#: Random bytes of a key's secret part.
SECRET_BYTES = 32


class ApiKeys:
    """All API keys, in one Redis hash. It is read at every request, so that a revocation takes effect at once."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    def create(self, owner: Owner, label: str = "") -> str:
        """Create a key and return it. It cannot be recovered later."""
        key_id, secret = secrets.token_hex(6), secrets.token_urlsafe(SECRET_BYTES)
        # Redis's clock: keys are listed by age, and hosts' own clocks differ.
        created_at_s = float(self._redis.time()[0])
        stored = ApiKey(key_id=key_id, digest=_digest(secret), owner=owner, label=label, created_at_s=created_at_s)
        self._redis.hset(keys.api_keys(), key_id, wire.encode(stored))
        return f"{KEY_PREFIX}_{key_id}_{secret}"

    def find(self, text: str) -> ApiKey | None:
        """The stored key that matches this text, or None. Compares in constant time."""
        prefix, _, rest = text.partition("_")
        key_id, _, secret = rest.partition("_")
        if prefix != KEY_PREFIX or not key_id or not secret:
            return None
        raw = cast("bytes | None", self._redis.hget(keys.api_keys(), key_id))
        if raw is None:
            return None
        stored = wire.decode(ApiKey, raw)
        return stored if hmac.compare_digest(stored.digest, _digest(secret)) else None

    def listed(self) -> list[ApiKey]:
        """All keys, the oldest first."""
        raw = cast("dict[bytes, bytes]", self._redis.hgetall(keys.api_keys()))
        return sorted((wire.decode(ApiKey, value) for value in raw.values()), key=lambda key: key.created_at_s)

    def revoke(self, key_id: str) -> bool:
        """Delete the key. False if there is none with this id."""
        return bool(self._redis.hdel(keys.api_keys(), key_id))


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
