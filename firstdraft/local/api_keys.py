"""The API keys on the configured Redis server, or on the embedded one."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager

from broker.api_keys import ApiKeys
from broker.connection import connect
from broker.tls import check_tls
from config.settings import read_settings, state_folder
from firstdraft.local.embedded import embedded_server, running_server
from schemas.owners import Owner, Scope


@contextmanager
def api_keys() -> Iterator[ApiKeys]:
    """The keys while the block runs. Starts the embedded server if it is needed and does not run."""
    settings = read_settings()
    with ExitStack() as stack:
        if settings.redis.url is not None:
            check_tls(settings.redis)
            url = settings.redis.url.get_secret_value()
        else:
            data = state_folder() / "redis"
            url = running_server(data) or stack.enter_context(embedded_server(data))
        yield ApiKeys(stack.enter_context(closing(connect(url))))


def key_owner(name: str, scopes: Sequence[str], weight: float, cache_group: str | None) -> Owner:
    """The owner of a new key, who may submit and read unless scopes are given. Raises `ValidationError`."""
    chosen = tuple(Scope(scope) for scope in scopes) or (Scope.SUBMIT, Scope.READ)
    return Owner(name=name, weight=weight, scopes=chosen, cache_group=cache_group)
