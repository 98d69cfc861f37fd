"""A connection to the configured Redis server, or to the embedded one, for commands that work on Redis itself."""

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager

from redis import Redis

from broker.connection import connect
from broker.tls import check_tls
from config.settings import read_settings, state_folder
from firstdraft.local.embedded import embedded_server, running_server


@contextmanager
def configured_redis() -> Iterator[Redis]:
    """The connection while the block runs. Starts the embedded server if it is needed and does not run."""
    settings = read_settings()
    with ExitStack() as stack:
        if settings.redis.url is not None:
            check_tls(settings.redis)
            url = settings.redis.url.get_secret_value()
        else:
            data = state_folder() / "redis"
            url = running_server(data) or stack.enter_context(embedded_server(data))
        yield stack.enter_context(closing(connect(url)))
