"""Idempotency keys: repeating a request with the same key and body creates nothing twice.

A key maps to the id of what the first request created: a job (the first, if one body makes several), a file or a batch.
The mapping is stored atomically with the created object, or before the object becomes visible, so that a repetition
finds it even if a process was killed in between.
"""

import hashlib
from dataclasses import dataclass
from typing import cast

from redis import Redis

from broker import keys, scripts

#: Seconds for which an idempotency key is kept.
IDEMPOTENCY_TTL_S = 86_400


class IdempotencyConflict(Exception):
    """An idempotency key was used again with another body, or on another route. Nothing was stored."""


@dataclass(frozen=True)
class Idempotency:
    """A key that its owner promises to use for one body only."""

    owner: str
    key: str
    #: Digest of the route and the body.
    body_digest: str

    @property
    def redis_key(self) -> str:
        """The Redis key. It contains a hash of the user's key instead of the user's text."""
        return keys.idempotency(self.owner, hashlib.sha256(self.key.encode()).hexdigest())

    def meaning(self, made_id: str) -> str:
        """The value to store, which maps the key to this id."""
        return f"{self.body_digest} {made_id}"

    def earlier(self, meaning: bytes) -> str:
        """The id in a stored value. Raises `IdempotencyConflict` if it was stored for another body."""
        digest, _, made_id = meaning.decode(errors="replace").partition(" ")
        if digest != self.body_digest:
            raise IdempotencyConflict("this Idempotency-Key was used with another body")
        return made_id


class IdempotencyKeys:
    """Idempotency keys of objects outside of Redis: an id is claimed before its object exists. Safe on any thread."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._claim = redis.register_script(scripts.CLAIM_KEY)

    def read(self, idempotency: Idempotency) -> str | None:
        """The id that the key maps to, or None. Raises `IdempotencyConflict`."""
        meaning = cast("bytes | None", self._redis.get(idempotency.redis_key))
        return None if meaning is None else idempotency.earlier(meaning)

    def claim(self, idempotency: Idempotency, made_id: str) -> str:
        """Map the key to this id unless it maps to one already; returns the id that it then maps to.

        Raises `IdempotencyConflict`. If another id is returned, the caller must check that it exists: the process that
        claimed it may have been killed before it created anything.
        """
        arguments: list[str | int] = [idempotency.meaning(made_id), IDEMPOTENCY_TTL_S]
        meaning = self._claim(keys=[idempotency.redis_key], args=arguments)
        return idempotency.earlier(cast("bytes", meaning))
