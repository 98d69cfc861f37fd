"""The gateway's composition root: `python -m gateway` serves the API with gunicorn."""

import logging
import socket
import sys
from collections.abc import Callable
from typing import Any

from gunicorn.app.base import BaseApplication
from redis import Redis

from broker.api_keys import ApiKeys
from broker.batches import BatchStore
from broker.connection import REDIS_AWAY, connect_configured, connect_index
from broker.holds import Lifetimes
from broker.idempotency import IdempotencyKeys
from broker.outbox import Outbox
from broker.prefix_index import PrefixIndex
from broker.presence import Presence
from broker.reaper import Reaper
from broker.records import RequestStore
from broker.router import Router
from broker.streams import EventHub
from broker.suitability import check_server
from config.logs import configure_logs
from config.settings import InvalidSettings, Settings, read_secret, read_settings, state_folder
from gateway import health
from gateway.admission import Admission
from gateway.app import create_app
from gateway.authentication import keys_are_required
from gateway.batches.runner import BatchRunner
from gateway.batches.sweeper import FileSweeper
from gateway.files import DiskFiles
from gateway.holders import Holders
from gateway.openai_compatible.models import ModelTable
from gateway.services import Services
from gateway.webhook_sender import WebhookSender

log = logging.getLogger("gateway")

#: Seconds that a stopping process gives to requests in flight.
GRACE_S = 2


def build(settings: Settings, health_socket: socket.socket | None = None) -> Any:
    """The application with everything that it needs. Starts threads, so build it in the process that serves."""
    redis = connect_configured(settings.redis)
    requests, prefixes = settings.requests, settings.prefix_index
    _check_redis(redis, settings)
    lifetimes = Lifetimes.configured(requests)
    store = RequestStore(redis, lifetimes, fsync=requests.durability == "fsync")
    Reaper(redis, store, lifetimes).start()
    presence = Presence(redis, requests.lease_s)
    index = PrefixIndex(connect_index(settings.redis), prefixes.entry_ttl_s)
    hub = EventHub(redis)
    hub.start()
    services = Services(
        settings=settings.gateway,
        admission=Admission(settings),
        all_requests=store,
        api_keys=ApiKeys(redis),
        backpressure=settings.backpressure,
        hub=hub,
        presence=presence,
        router=Router.configured(settings, redis, presence),
        batches=BatchStore(redis),
        files=DiskFiles(settings.gateway.files_path or state_folder() / "files"),
        idempotency_keys=IdempotencyKeys(redis),
        holders=Holders(index, presence, prefixes.block_bytes) if prefixes.enabled else None,
    )
    BatchRunner(services).start()
    FileSweeper(services).start()
    if secret := read_secret(settings.webhooks.secret_env):
        WebhookSender(Outbox(redis), store, settings.webhooks, secret, services.clock).start()
    if health_socket is not None:
        health.serve(services, health_socket)
    return create_app(services, redis.connection_pool)


def _check_redis(redis: Redis, settings: Settings) -> None:
    """A gateway starts without Redis and says 503; what it then finds is not checked again."""
    try:
        check_server(redis, settings)
    except REDIS_AWAY as error:
        log.warning("redis_away error=%s", error)


class Server(BaseApplication):
    """gunicorn, configured from our settings and from nothing else."""

    def __init__(self, settings: Settings, load: Callable[[], Any]) -> None:
        self._settings = settings
        self._load = load
        super().__init__()

    def load_config(self) -> None:
        """Called by gunicorn before it forks."""
        gateway = self._settings.gateway
        self.cfg.set("bind", f"{gateway.host}:{gateway.port}")
        self.cfg.set("workers", gateway.processes)
        self.cfg.set("worker_class", "gthread")
        self.cfg.set("threads", gateway.threads)
        self.cfg.set("graceful_timeout", GRACE_S)
        self.cfg.set("loglevel", "warning")
        self.cfg.set("proc_name", "firstdraft-gateway")

    def load(self) -> Any:
        """Called by gunicorn in each process that serves."""
        return self._load()


def main() -> None:
    """Serve until told to stop."""
    settings = read_settings()
    configure_logs(settings.log_level)
    if keys_are_required(settings.gateway):
        log.info("api_keys_are_required host=%s make_one_with='firstdraft keys create NAME'", settings.gateway.host)
    # Settings that name what is not there stop the process here, not each of its children.
    ModelTable(Admission(settings).policies, settings.gateway.model_aliases)
    if settings.requests.durability == "fsync" or settings.redis.unsuitable == "refuse":
        _check_redis(connect_configured(settings.redis), settings)  # here, where it ends the process and not a child
    log.info("gateway_starting host=%s port=%d", settings.gateway.host, settings.gateway.port)
    health_socket = health.bind(settings.gateway)
    Server(settings, lambda: build(settings, health_socket)).run()


if __name__ == "__main__":
    try:
        main()
    except (InvalidSettings, ValueError, OSError) as problem:
        sys.exit(f"gateway: {problem}")
