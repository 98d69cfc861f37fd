"""The HTTP API: routes in, the broker out. `create_app` is given what it works with and builds nothing at import."""

import json
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from threading import BoundedSemaphore
from typing import cast

from flask import Response, request
from flask_openapi3.models.info import Info
from flask_openapi3.openapi import OpenAPI
from pydantic import BaseModel, Field
from redis.exceptions import BusyLoadingError, OutOfMemoryError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from werkzeug.exceptions import HTTPException

from broker.presence import Presence
from broker.records import Record, RequestStore
from broker.states import FINISHED
from broker.streams import BEGINNING, EventHub, StreamedEvent
from config.settings import GatewaySettings
from gateway import reports
from gateway.admission import Admission, Refused
from gateway.problems import invalid, problem, refused
from schemas.jobs import CacheReport, Health, Job, Readiness, SystemReport
from schemas.requests import JobRequest
from schemas.wire import Wire
from schemas.workers import WorkerReport

#: Seconds that a client should wait before it asks again, where nothing better is known.
RETRY_AFTER_S = "1"
#: What Redis answers when it cannot take anything; every other error of it is a bug of ours.
REDIS_AWAY = (RedisConnectionError, RedisTimeoutError, BusyLoadingError, OutOfMemoryError)


class JobPath(BaseModel):
    """Which job."""

    job_id: str = Field(description="The id that POST /v1/jobs answered with.")


class WaitQuery(BaseModel):
    """How long to wait."""

    wait: float = Field(0.0, ge=0.0, description="Seconds to wait for the job to finish; cut to gateway.max_wait_s.")


class ResumeHeader(BaseModel):
    """Where an event stream that was cut off goes on."""

    last_event_id: str = Field(BEGINNING, pattern=r"^\d{1,19}-\d{1,19}$")


@dataclass(frozen=True)
class Services:
    """What the routes work with."""

    settings: GatewaySettings
    admission: Admission
    store: RequestStore
    hub: EventHub
    presence: Presence
    clock: Callable[[], float] = time.time


def create_app(services: Services) -> OpenAPI:
    """The WSGI application."""
    info = Info(title="Firstdraft", version="0.1.0")
    app = OpenAPI("gateway", info=info, validation_error_callback=invalid)
    app.config["MAX_CONTENT_LENGTH"] = services.settings.max_body_bytes
    _add_errors(app)
    streams = BoundedSemaphore(services.settings.max_streams)
    _add_jobs(app, services, streams)
    _add_events(app, services, streams)
    _add_health(app, services)
    return app


def _add_errors(app: OpenAPI) -> None:
    @app.errorhandler(HTTPException)
    def on_http_error(error: HTTPException) -> Response:
        if error.response is not None:  # made by the validation callback
            return cast("Response", error.response)
        return problem(error.code or 500, error.name, error.description or error.name)

    @app.errorhandler(Refused)
    def on_refusal(error: Refused) -> Response:
        return refused(error)

    @app.errorhandler(RecursionError)
    def on_recursion(_error: RecursionError) -> Response:
        return problem(400, "The body is nested too deeply", "Nothing was stored.")

    def on_redis_away(error: Exception) -> Response:
        app.logger.warning("redis_away error=%s", error)
        headers = {"Retry-After": RETRY_AFTER_S}
        return problem(503, "Redis is away", "Nothing was stored; try again.", headers=headers)

    for kind in REDIS_AWAY:
        app.register_error_handler(kind, on_redis_away)

    app.before_request(_check_body)


def _check_body() -> Response | None:
    if request.method != "POST":
        return None
    if not request.is_json:
        detail = f"The body must be application/json (Content-Type is {request.content_type!r})"
        return problem(415, "Unsupported media type", detail)
    try:
        json.loads(request.get_data())
    except ValueError as error:
        return problem(400, "The body is not JSON", str(error))
    return None


def _add_jobs(app: OpenAPI, services: Services, streams: BoundedSemaphore) -> None:
    store, limits = services.store, services.settings

    @app.post("/v1/jobs", responses={202: Job})
    def submit(body: JobRequest) -> Response:
        """Submit a prompt. The answer is at the job's own address."""
        accepted = services.admission.accept(body, uuid.uuid4().hex, services.clock())
        store.create(accepted)
        app.logger.info("request_accepted request_id=%s policy=%s", accepted.request_id, accepted.policy.name)
        job = Job(
            id=accepted.request_id,
            status="queued" if "edge" in accepted.policy.tiers else "escalated",
            policy=accepted.policy.name,
            created_at=accepted.accepted_at_s,
        )
        return _json(job, 202, {"Location": f"/v1/jobs/{job.id}", "Retry-After": RETRY_AFTER_S})

    @app.get("/v1/jobs/<job_id>", responses={200: Job})
    def read(path: JobPath, query: WaitQuery) -> Response:
        """Get the job, at once or when it has finished."""
        record = store.read(path.job_id)
        if record is not None and record.state not in FINISHED and query.wait > 0:
            if not streams.acquire(blocking=False):
                return _too_many(limits)
            try:
                deadline = time.monotonic() + min(query.wait, limits.max_wait_s)
                for _ in services.hub.follow(path.job_id, BEGINNING, deadline):
                    pass
            finally:
                streams.release()
            record = store.read(path.job_id)
        return _not_found(path) if record is None else _job(record)

    @app.delete("/v1/jobs/<job_id>", responses={200: Job})
    def cancel(path: JobPath) -> Response:
        """Cancel the job. One that has finished stays as it is."""
        store.cancel(path.job_id)
        record = store.read(path.job_id)
        return _not_found(path) if record is None else _job(record)


def _add_events(app: OpenAPI, services: Services, streams: BoundedSemaphore) -> None:
    @app.get("/v1/jobs/<job_id>/events")
    def events(path: JobPath, header: ResumeHeader) -> Response:
        """Follow the job: server-sent events, its whole history first, resumable by Last-Event-ID."""
        state = services.store.state(path.job_id)
        if state is None:
            return _not_found(path)
        if state in FINISHED and not services.hub.read(path.job_id, header.last_event_id):
            return Response(status=204)  # what tells an EventSource not to connect again
        if not streams.acquire(blocking=False):
            return _too_many(services.settings)
        following = services.hub.follow(path.job_id, header.last_event_id, deadline=float("inf"))
        response = Response(_server_sent(following), content_type="text/event-stream")
        response.headers["Cache-Control"] = "no-store"
        response.headers["X-Accel-Buffering"] = "no"
        response.call_on_close(streams.release)
        return response


def _add_health(app: OpenAPI, services: Services) -> None:
    def live() -> list[WorkerReport] | None:
        try:
            return services.presence.live()
        except REDIS_AWAY:
            return None

    @app.get("/healthz", responses={200: Health})
    def healthz() -> Response:
        """Whether this process answers."""
        return _json(Health())

    @app.get("/readyz", responses={200: Readiness, 503: Readiness})
    def readyz() -> Response:
        """Whether a request of the configured policy would be answered, by whom, and what is missing if not."""
        state = reports.readiness(services.admission.default_policy, live())
        return _json(state, 200 if state.ready else 503)

    @app.get("/v1/cache/stats", responses={200: CacheReport})
    def cache_stats() -> Response:
        """The KV caches of every live worker."""
        return _json(reports.caches(services.presence.live()))

    @app.get("/v1/stats", responses={200: SystemReport})
    def stats() -> Response:
        """Counters, queues and workers."""
        return _json(reports.system(services.store.counters(), services.store.waiting(), services.presence.live()))


def _json(body: Wire, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(body.model_dump_json(), status, headers, content_type="application/json")


def _job(record: Record) -> Response:
    job = Job(
        id=record.request_id,
        status=record.state,
        policy=record.request.policy.name,
        created_at=record.request.accepted_at_s,
        result=record.result,
        failure=record.failure,
    )
    return _json(job, headers={} if record.state in FINISHED else {"Retry-After": RETRY_AFTER_S})


def _not_found(path: JobPath) -> Response:
    return problem(404, "No such job", f"There is no job {path.job_id!r}, or its result has expired.")


def _too_many(limits: GatewaySettings) -> Response:
    detail = f"This process already serves {limits.max_streams} streams and waits."
    return problem(503, "Too many streams", detail, headers={"Retry-After": RETRY_AFTER_S})


def _server_sent(following: Iterator[StreamedEvent | None]) -> Iterator[str]:
    for streamed in following:
        if streamed is None:
            yield ": still here\n\n"  # the write that notices a client that has left
        else:
            event = streamed.event
            yield f"id: {streamed.position}\nevent: {event.type}\ndata: {event.model_dump_json()}\n\n"
