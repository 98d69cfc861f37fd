"""Health, caches and statistics."""

from flask import Response
from flask_openapi3.openapi import OpenAPI

from broker.connection import REDIS_AWAY
from gateway.http import statistics
from gateway.http.authentication import asking_owner
from gateway.http.openapi import STATE
from gateway.jobs.answers import json_answer
from gateway.jobs.prefix_lookup import PrefixLookup
from gateway.jobs.request_validation import Admission
from gateway.services import Services
from schemas.jobs import CacheReport, Health, HolderReport, Readiness, SystemReport
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
        """Whether this process answers and what it does beside requests works; if not, restart it."""
        broken = tuple(loop.name for loop in services.loops if loop.broken)
        return json_answer(Health(status="failing" if broken else "ok", broken=broken), 503 if broken else 200)

    @app.get("/readyz", tags=[STATE], responses={200: Readiness, 503: Readiness})
    def readyz() -> Response:
        """Whether a request of the configured policy would be answered, by whom, and what is missing if not."""
        state = statistics.readiness(services.admission.default_policy, live())
        return json_answer(state, 200 if state.ready else 503)

    @app.get("/v1/cache/stats", tags=[STATE], responses={200: CacheReport})
    def cache_stats() -> Response:
        """The KV caches of every live worker."""
        return json_answer(statistics.caches(presence.live()))

    if services.holders is not None:
        _add_holders(app, services.holders, services.admission)

    @app.get("/v1/stats", tags=[STATE], responses={200: SystemReport})
    def stats() -> Response:
        """Counters, queues and workers."""
        return json_answer(statistics.system(store.counters(), store.waiting(), presence.live()))


def _add_holders(app: OpenAPI, holders: PrefixLookup, admission: Admission) -> None:
    @app.post("/v1/cache/holders", tags=[STATE], responses={200: HolderReport})
    def cache_holders(body: JobRequest) -> Response:
        """Which workers hold the beginning of this prompt in their caches for who asks. Submits nothing."""
        namespace = admission.cache_namespace(asking_owner() or NOBODY)
        return json_answer(holders.of(body.conversation(), namespace))
