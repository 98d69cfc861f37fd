"""/healthz, /readyz, /v1/cache and /v1/stats."""

from flask import Response
from flask_openapi3.openapi import OpenAPI

from broker.connection import REDIS_AWAY
from gateway.http.answers import json_answer
from gateway.http.authentication import asking_owner
from gateway.http.openapi import STATE
from gateway.monitoring import statistics
from gateway.services import Services
from schemas.jobs import CachedPrefixReport, CacheReport, Health, Readiness, SystemReport
from schemas.owners import NOBODY
from schemas.requests import JobRequest
from schemas.workers import WorkerReport


def add(app: OpenAPI, services: Services) -> None:
    """Add the routes."""
    presence, store = services.presence, services.store

    def live() -> list[WorkerReport] | None:
        try:
            return presence.live()
        except REDIS_AWAY:
            return None

    @app.get("/healthz", tags=[STATE], responses={200: Health, 503: Health})
    def healthz() -> Response:
        """Whether this process answers and its background threads work; if not, restart it."""
        broken = tuple(loop.name for loop in services.loops if loop.broken)
        return json_answer(Health(status="failing" if broken else "ok", broken=broken), 503 if broken else 200)

    @app.get("/readyz", tags=[STATE], responses={200: Readiness, 503: Readiness})
    def readyz() -> Response:
        """Whether a request with the default policy would be answered, by which workers, and what is missing if not."""
        state = statistics.readiness(services.admission.default_policy, live())
        return json_answer(state, 200 if state.ready else 503)

    @app.get("/v1/cache/stats", tags=[STATE], responses={200: CacheReport})
    def cache_stats() -> Response:
        """The KV caches of every live worker."""
        return json_answer(statistics.caches(presence.live()))

    @app.get("/v1/stats", tags=[STATE], responses={200: SystemReport})
    def stats() -> Response:
        """Counters, queues, calibrations and workers."""
        calibrations = [
            statistics.calibration(active, services.calibrations.drift(active.scope))
            for active in services.calibrations.active()
        ]
        return json_answer(statistics.system(store.counters(), store.waiting(), presence.live(), calibrations))

    if (prefix_lookup := services.prefix_lookup) is not None:

        @app.post("/v1/cache/holders", tags=[STATE], responses={200: CachedPrefixReport})
        def cache_holders(body: JobRequest) -> Response:
            """Which workers have the beginning of this prompt in the caller's part of their caches. Submits nothing."""
            namespace = services.admission.cache_namespace(asking_owner() or NOBODY)
            return json_answer(prefix_lookup.find(body.conversation(), namespace))
