"""Who a request comes from, and what they may do."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from schemas.message import Wire
from schemas.requests import ANONYMOUS


class Scope(StrEnum):
    """What an API key is good for."""

    #: Submit and cancel jobs.
    SUBMIT = "submit"
    #: Read one's own jobs.
    READ = "read"
    #: Read and cancel anyone's jobs, and the system's statistics.
    ADMIN = "admin"


#: What owners and cache groups may be called.
Name = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._@-]+$")]


class Owner(Wire):
    """Who owns the requests that come with a key. Several keys may have one owner."""

    name: Name
    #: The share beside others' where there is not enough for all.
    weight: float = Field(1.0, ge=0.01, le=100.0)
    scopes: tuple[Scope, ...] = tuple(Scope)
    #: Requests of all keys with the same group share cached prefixes. None: only those of the same owner do.
    cache_group: Name | None = None


class ApiKey(Wire):
    """An API key as it is kept: not what opens, but what to compare with."""

    key_id: str
    #: SHA-256 of the secret part, which is random and long enough that no slower hash is needed.
    digest: str
    owner: Owner
    #: What it is for, in its maker's words.
    label: str = ""
    #: Seconds since the epoch.
    created_at_s: float


#: Whoever comes without a key, where none is needed.
NOBODY = Owner(name=ANONYMOUS)
