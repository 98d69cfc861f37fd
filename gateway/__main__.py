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
from broker.calibrations import CalibrationStore
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
from gateway.http.authentication import keys_are_required
from gateway.http.connections.worker import Reading
from gateway.jobs.request_validation import Admission
from gateway.monitoring import health
from gateway.monitoring.prefix_lookup import PrefixLookup
from gateway.openai.models import ModelTable
from gateway.services import Services
from gateway.webhooks.queue import DEFAULT_LIMITS
from gateway.webhooks.sender import WebhookSender

log = logging.getLogger("gateway")

#: Seconds that a stopping process gives requests in flight to finish.
GRACE_S = 2
#: Seconds after which a serving process whose loop does not answer is replaced.
SILENCE_S = 30
#: Files that a process opens besides its connections to clients and Redis.
NUM_OTHER_FILES = 256


def build(settings: Settings, health_socket: socket.socket | None = None) -> Any:
    """The application with all that it needs. Starts threads, so it must be called in the process that serves."""
    # A WebSocket has a second thread, which sends events.
    num_threads = settings.gateway.threads + settings.gateway.max_streams
    redis = connect_configured(settings.redis, num_threads + DEFAULT_LIMITS.in_flight)
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
        calibrations=CalibrationStore(redis),
        files=DiskFiles(settings.gateway.files_path or state_folder() / "files", clock),
        idempotency_keys=IdempotencyKeys(redis),
        clock=clock,
        prefix_lookup=PrefixLookup(index, presence, prefixes.block_bytes) if prefixes.enabled else None,
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
    """Check the server once. Without Redis the gateway starts all the same, answers 503 and does not check later."""
    try:
        check_server(redis, settings)
    except REDIS_AWAY as error:
        log.warning("redis_away error=%s", error)


class Server(BaseApplication):
    """gunicorn, configured by our settings and nothing else."""

    def __init__(self, settings: Settings, load: Callable[[], Any]) -> None:
        self._settings = settings
        self._load = load
        #: For `gateway.http.connections.worker`.
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
        self.cfg.set("sendfile", False)  # sendfile would make a thread wait for a slow client
        # Otherwise a client on this machine could change its request's path by a header.
        self.cfg.set("forwarder_headers", "")
        # Otherwise all gateways would share one control socket of gunicorn's in the home folder.
        self.cfg.set("control_socket_disable", True)
        self.cfg.set("loglevel", "warning")
        self.cfg.set("proc_name", "firstdraft-gateway")

    def load(self) -> Any:
        """Called by gunicorn in each process that serves."""
        return self._load()


def allow_open_files(settings: GatewaySettings) -> None:
    """Raise this process's limit of open files to what its connections need; warn if the system allows less."""
    num_threads = settings.threads + settings.max_streams + DEFAULT_LIMITS.in_flight
    needed = settings.max_connections + 2 * num_threads + NUM_OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        except ValueError:  # macOS has a second, lower limit
            allowed = soft
        if allowed < needed:
            log.warning("few_open_files allowed=%d needed=%d raise='ulimit -n'", allowed, needed)


def main() -> None:
    """Serve until told to stop."""
    settings = read_settings()
    configure_logs(settings.log_level)
    if keys_are_required(settings.gateway):
        log.info("api_keys_are_required host=%s make_one_with='firstdraft keys create NAME'", settings.gateway.host)
    # Bad settings end the process here, and not each of its children.
    ModelTable(Admission(settings).policies, settings.gateway.model_aliases)
    check_tls(settings.redis)
    if settings.requests.durability == "fsync" or settings.redis.unsuitable == "refuse":
        _check_redis(connect_configured(settings.redis), settings)  # as above
    log.info("gateway_starting host=%s port=%d", settings.gateway.host, settings.gateway.port)
    allow_open_files(settings.gateway)
    health_socket = health.bind(settings.gateway)
    Server(settings, lambda: build(settings, health_socket)).run()


if __name__ == "__main__":
    try:
        main()
    except (InvalidSettings, ValueError, OSError) as problem:
        sys.exit(f"gateway: {problem}")
