"""The gateway's composition root: `python -m gateway` serves the API with gunicorn."""

import logging
import resource
import socket
import sys
from collections.abc import Callable
from typing import Any

from gunicorn.app.base import BaseApplication
from redis import Redis

from broker.api_keys import ApiKeys
from broker.batches import BatchStore
from broker.clock import ServerClock
from broker.connection import REDIS_AWAY, connect_configured, connect_index
from broker.event_streams import EventHub
from broker.idempotency import IdempotencyKeys
from broker.leases import Lifetimes
from broker.outbox import Outbox
from broker.prefix_index import PrefixIndex
from broker.presence import Presence
from broker.reaper import Reaper
from broker.request_store import RequestStore
from broker.router import Router
from broker.suitability import check_server
from broker.tls import check_tls
from config.logs import configure_logs
from config.settings import GatewaySettings, InvalidSettings, Settings, read_secret, read_settings, state_folder
from gateway.app import create_app
from gateway.batches.files import DiskFiles
from gateway.batches.runner import BatchRunner
from gateway.batches.sweeper import FileSweeper
from gateway.http import health
from gateway.http.authentication import keys_are_required
from gateway.http.connections.worker import Reading
from gateway.jobs.prefix_lookup import PrefixLookup
from gateway.jobs.request_validation import Admission
from gateway.openai.models import ModelTable
from gateway.services import Services
from gateway.webhooks.queue import DEFAULT_BOUNDS
from gateway.webhooks.sender import WebhookSender

log = logging.getLogger("gateway")

#: Seconds that a stopping process gives to requests in flight.
GRACE_S = 2
#: Seconds without a sign of life from a serving process's loop after which it is replaced.
SILENCE_S = 30
#: Files that a process opens beside its clients' and Redis's connections.
NUM_OTHER_FILES = 256


def build(settings: Settings, health_socket: socket.socket | None = None) -> Any:
    """The application with everything that it needs. Starts threads, so build it in the process that serves."""
    # A WebSocket has a second thread, which tells events.
    num_threads = settings.gateway.threads + settings.gateway.max_streams
    redis = connect_configured(settings.redis, num_threads + DEFAULT_BOUNDS.in_flight)
    requests, prefixes = settings.requests, settings.prefix_index
    _check_redis(redis, settings)
    lifetimes = Lifetimes.configured(requests)
    store = RequestStore(redis, lifetimes, fsync=requests.durability == "fsync")
    presence = Presence(redis, requests.lease_s)
    reaper, router = Reaper(store), Router.configured(settings, store, presence, num_threads)
    index = PrefixIndex(connect_index(settings.redis, num_threads), prefixes.entry_ttl_s)
    hub, clock = EventHub(redis), ServerClock(redis)
    services = Services(
        settings=settings.gateway,
        admission=Admission(settings),
        all_requests=store,
        api_keys=ApiKeys(redis),
        backpressure=settings.backpressure,
        hub=hub,
        presence=presence,
        router=router,
        batches=BatchStore(redis),
        files=DiskFiles(settings.gateway.files_path or state_folder() / "files", clock),
        idempotency_keys=IdempotencyKeys(redis),
        clock=clock,
        holders=PrefixLookup(index, presence, prefixes.block_bytes) if prefixes.enabled else None,
        loops=[hub.loop, reaper.loop, router.loop],
    )
    services.loops.extend([BatchRunner(services).loop, FileSweeper(services).loop])
    if secret := read_secret(settings.webhooks.secret_env):
        services.loops.append(WebhookSender(Outbox(redis), store, settings.webhooks, secret, clock).loop)
    for loop in services.loops:
        loop.start()
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
        #: Read by `gateway.http.connections.worker`.
        self.reading = Reading(settings.gateway.max_body_bytes, settings.gateway.request_s)
        super().__init__()

    def load_config(self) -> None:
        """Called by gunicorn before it forks."""
        gateway = self._settings.gateway
        self.cfg.set("bind", gateway.authority)
        self.cfg.set("workers", gateway.processes)
        self.cfg.set("worker_class", "gateway.http.connections.worker.Worker")
        self.cfg.set("threads", gateway.threads)
        self.cfg.set("keepalive", gateway.keep_alive_s)
        self.cfg.set("worker_connections", gateway.max_connections)
        self.cfg.set("graceful_timeout", GRACE_S)
        self.cfg.set("timeout", SILENCE_S)
        self.cfg.set("sendfile", False)  # it would have a thread wait for a slow client
        # Otherwise a header that says so, from a client of this machine, makes one path another.
        self.cfg.set("forwarder_headers", "")
        # Otherwise each gateway listens for gunicorn's own commands, all of them on one socket in the home folder.
        self.cfg.set("control_socket_disable", True)
        self.cfg.set("loglevel", "warning")
        self.cfg.set("proc_name", "firstdraft-gateway")

    def load(self) -> Any:
        """Called by gunicorn in each process that serves."""
        return self._load()


def allow_open_files(settings: GatewaySettings) -> None:
    """Raise this process's limit of open files to what its connections take; say so where the system has less."""
    num_threads = settings.threads + settings.max_streams + DEFAULT_BOUNDS.in_flight
    needed = settings.max_connections + 2 * num_threads + NUM_OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        except ValueError:  # macOS has another limit beside this one
            allowed = soft
        if allowed < needed:
            log.warning("few_open_files allowed=%d needed=%d raise='ulimit -n'", allowed, needed)


def main() -> None:
    """Serve until told to stop."""
    settings = read_settings()
    configure_logs(settings.log_level)
    if keys_are_required(settings.gateway):
        log.info("api_keys_are_required host=%s make_one_with='firstdraft keys create NAME'", settings.gateway.host)
    # Settings that name what is not there stop the process here, not each of its children.
    ModelTable(Admission(settings).policies, settings.gateway.model_aliases)
    check_tls(settings.redis)
    if settings.requests.durability == "fsync" or settings.redis.unsuitable == "refuse":
        _check_redis(connect_configured(settings.redis), settings)  # here, where it ends the process and not a child
    log.info("gateway_starting host=%s port=%d", settings.gateway.host, settings.gateway.port)
    allow_open_files(settings.gateway)
    health_socket = health.bind(settings.gateway)
    Server(settings, lambda: build(settings, health_socket)).run()


if __name__ == "__main__":
    try:
        main()
    except (InvalidSettings, ValueError, OSError) as problem:
        sys.exit(f"gateway: {problem}")
