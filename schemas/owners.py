"""Owners of requests, API keys, and what a key allows."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from schemas.message import Wire
from schemas.requests import ANONYMOUS


class Scope(StrEnum):
    """What an API key allows."""

    #: Submit and cancel jobs.
    SUBMIT = "submit"
    #: Read one's own jobs.
    READ = "read"
    #: Read and cancel anyone's jobs, and the system's statistics.
    ADMIN = "admin"


#: The name of an owner or a cache group.
Name = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._@-]+$")]


class Owner(Wire):
    """The owner of the requests that come with a key. Several keys may have one owner."""

    name: Name
    #: The owner's share, relative to others', when the system is full.
    weight: float = Field(1.0, ge=0.01, le=100.0)
    scopes: tuple[Scope, ...] = tuple(Scope)
    #: Requests of all keys with the same group share cached prefixes. None: only those of the same owner do.
    cache_group: Name | None = None


class ApiKey(Wire):
    """An API key as it is stored: its digest, not the key."""

    key_id: str
    #: SHA-256 of the secret part. It is random and long, so that no slower hash is needed.
    digest: str
    owner: Owner
    #: What the key is for, for people to read.
    label: str = ""
    #: Seconds since the epoch.
    created_at_s: float


#: The owner of requests without a key, where none is needed.
NOBODY = Owner(name=ANONYMOUS)
