"""The header `Idempotency-Key`: which request a key stands for."""

import hashlib
import json

from flask import request
from pydantic import BaseModel, Field

from broker.idempotency import Idempotency
from gateway.http.authentication import asking_owner
from schemas.owners import NOBODY

#: The header of an answer to a repeated request.
REPLAYED = {"Idempotency-Replayed": "true"}
#: The longest key.
MAX_KEY_LENGTH = 255


class IdempotencyHeader(BaseModel):
    """The header that makes it safe to send a POST again."""

    key: str | None = Field(
        None,
        alias="Idempotency-Key",
        min_length=1,
        max_length=MAX_KEY_LENGTH,
        description="Within 24 hours, the same key and body is the same thing, made once; another body is refused.",
    )

    def of_json(self) -> Idempotency | None:
        """The key with the current request's route and JSON body; None if the request has no key."""
        return None if self.key is None else idempotency_of(self.key, request.path, request.get_json())

    def of_upload(self, filename: str, purpose: str, kept_s: int | None, digest: str) -> Idempotency | None:
        """The key with an upload, whose content has this digest; None if the request has no key."""
        return None if self.key is None else idempotency_of(self.key, request.path, [filename, purpose, kept_s, digest])


def idempotency_of(key: str, route: str, body: object) -> Idempotency:
    """The caller's key with the route and body. `body` is parsed JSON, so that its spelling does not matter."""
    canonical = json.dumps([route, body], sort_keys=True)
    return Idempotency((asking_owner() or NOBODY).name, key, hashlib.sha256(canonical.encode()).hexdigest())
