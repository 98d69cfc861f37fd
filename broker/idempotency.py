"""Idempotency keys: the same key and body is the same request."""

import hashlib
from dataclasses import dataclass

from broker import keys

#: Seconds for which an idempotency key stands for its request.
IDEMPOTENCY_TTL_S = 86_400


class IdempotencyConflict(Exception):
    """An idempotency key came again with another body. Nothing was stored."""


@dataclass(frozen=True)
class Idempotency:
    """A key that its user promises to use for one body only."""

    owner: str
    key: str
    #: What the key stands for: a digest of the body.
    body_digest: str

    @property
    def redis_key(self) -> str:
        """Where it is kept; users' own words are no part of a key's name."""
        return keys.idempotency(self.owner, hashlib.sha256(self.key.encode()).hexdigest())

    def earlier(self, meaning: bytes) -> str:
        """The id of the request that it stood for. Raises `IdempotencyConflict` if that had another body."""
        digest, _, request_id = meaning.decode(errors="replace").partition(" ")
        if digest != self.body_digest:
            raise IdempotencyConflict("this Idempotency-Key was used with another body")
        return request_id
