"""API keys: made, found, listed, revoked. Only hashes are stored; the key itself is shown once."""

import hashlib
import hmac
import secrets
from typing import cast

from redis import Redis

from broker import keys
from schemas import wire
from schemas.owners import ApiKey, Owner

#: What every key of ours starts with, so that scanners for leaked secrets can know it.
KEY_PREFIX = "fd"
#: What the names of Flask-Limiter's counters start with.
RATE_LIMIT_PREFIX = keys.rate_limits()
#: Random bytes of a key's secret part.
SECRET_BYTES = 32


class ApiKeys:
    """All keys, in one hash. Looked up at every request, so that a revocation counts at once."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    def create(self, owner: Owner, label: str = "") -> str:
        """Make a key. What is answered is the key itself, which nothing can tell again."""
        key_id, secret = secrets.token_hex(6), secrets.token_urlsafe(SECRET_BYTES)
        # By the clock that all hosts share: keys are listed by their age, wherever they were made.
        made_at_s = float(self._redis.time()[0])
        kept = ApiKey(key_id=key_id, digest=_digest(secret), owner=owner, label=label, created_at_s=made_at_s)
        self._redis.hset(keys.api_keys(), key_id, wire.encode(kept))
        return f"{KEY_PREFIX}_{key_id}_{secret}"

    def find(self, text: str) -> ApiKey | None:
        """The key that the text is, or None."""
        prefix, _, rest = text.partition("_")
        key_id, _, secret = rest.partition("_")
        if prefix != KEY_PREFIX or not key_id or not secret:
            return None
        raw = cast("bytes | None", self._redis.hget(keys.api_keys(), key_id))
        kept = None if raw is None else wire.decode(ApiKey, raw)
        return kept if kept is not None and hmac.compare_digest(kept.digest, _digest(secret)) else None

    def listed(self) -> list[ApiKey]:
        """All keys, the oldest first."""
        raw = cast("dict[bytes, bytes]", self._redis.hgetall(keys.api_keys()))
        return sorted((wire.decode(ApiKey, one) for one in raw.values()), key=lambda one: one.created_at_s)

    def revoke(self, key_id: str) -> bool:
        """Make the key worthless at once. False where there is none of this id."""
        return bool(self._redis.hdel(keys.api_keys(), key_id))


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
