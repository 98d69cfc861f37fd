"""The API keys on the configured Redis server, or on the embedded one."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from broker.api_keys import ApiKeys
from firstdraft.local.connection import configured_redis
from schemas.owners import Owner, Scope


@contextmanager
def api_keys() -> Iterator[ApiKeys]:
    """The keys while the block runs."""
    with configured_redis() as redis:
        yield ApiKeys(redis)


def key_owner(name: str, scopes: Sequence[str], weight: float, cache_group: str | None) -> Owner:
    """The owner of a new key, who may submit and read unless scopes are given. Raises `ValidationError`."""
    chosen = tuple(Scope(scope) for scope in scopes) or (Scope.SUBMIT, Scope.READ)
    return Owner(name=name, weight=weight, scopes=chosen, cache_group=cache_group)
