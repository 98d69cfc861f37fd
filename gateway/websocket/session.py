"""One WebSocket conversation: messages are answered in turn, events are sent as they come."""

import json
import logging
import threading
from contextlib import suppress

from pydantic import ValidationError

from broker.connection import REDIS_AWAY
from broker.event_streams import POLL_S, EventSubscription
from broker.idempotency import Idempotency
from gateway.http.authentication import check_scope
from gateway.http.error_handlers import ANSWERS, api_error
from gateway.http.errors import ApiError, invalid
from gateway.http.idempotency import idempotency_of
from gateway.jobs.answers import job_of, no_such_job
from gateway.jobs.submission import submit
from gateway.services import Services
from gateway.websocket.connection import Connection, Gone
from schemas.events import FINAL_KINDS
from schemas.owners import Scope
from schemas.plain import check_plain
from schemas.problems import Problem
from schemas.sockets import (
    Cancel,
    ClientMessage,
    EventMessage,
    Follow,
    JobMessage,
    ProblemMessage,
    Submit,
    client_message_adapter,
)
from schemas.wire import UndecodableMessage

log = logging.getLogger(__name__)

#: The most jobs that one connection may follow at once.
MAX_FOLLOWED = 1_000


class Session:
    """One connection's conversation."""

    def __init__(self, services: Services, connection: Connection, subscription: EventSubscription) -> None:
        self._services = services
        self._connection = connection
        self._subscription = subscription
        #: For each followed job, the position of the last event that was sent.
        self._positions: dict[str, str] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()

    def run(self) -> None:
        """Answer messages on this thread and send events on another. Blocks until the client leaves."""
        event_sender = threading.Thread(target=self._send_events, name="websocket-events", daemon=True)
        event_sender.start()
        try:
            while True:
                self._connection.send(self._answer(self._connection.receive()))
        except Gone:
            pass  # the jobs go on, and another connection can follow them
        finally:
            self._ended.set()
            self._subscription.notify("")  # ends the other thread's wait
            self._connection.close()
            event_sender.join(POLL_S)

    def _answer(self, raw: str) -> str:
        try:
            return self._execute(client_message_adapter.validate_json(raw), raw).model_dump_json()
        except ValidationError as error:
            return _problem_message(_ref_of(raw), invalid(error))
        except tuple(ANSWERS) as error:
            return _problem_message(_ref_of(raw), api_error(error))

    def _execute(self, message: ClientMessage, raw: str) -> JobMessage:
        match message:
            case Submit():
                check_scope(Scope.SUBMIT)
                self._check_room()
                job_id = submit(self._services, message.body, key=_key_of(message, raw)).request_id
                self._follow(job_id, "0-0")
            case Follow(job_id=job_id):
                self._check_room()
                if self._services.store.state(job_id) is None:  # nothing of another owner's job may be sent
                    raise no_such_job(self._services.store, job_id)
                self._follow(job_id, message.after)
            case Cancel(job_id=job_id):
                check_scope(Scope.SUBMIT)
                self._services.store.cancel(job_id)
        record = self._services.store.read(job_id)
        if record is None:
            self._unfollow(job_id)
            raise no_such_job(self._services.store, job_id)
        return JobMessage(ref=message.ref, job=job_of(record))

    def _check_room(self) -> None:
        if len(self._positions) >= MAX_FOLLOWED:
            raise ApiError(429, "Too many jobs followed", f"This connection follows {MAX_FOLLOWED} jobs already.")

    def _follow(self, job_id: str, after: str) -> None:
        with self._lock:
            self._positions[job_id] = after
        self._subscription.add(job_id)
        self._subscription.notify(job_id)  # sends past events at once

    def _unfollow(self, job_id: str) -> None:
        self._subscription.discard(job_id)
        with self._lock:
            self._positions.pop(job_id, None)

    def _send_events(self) -> None:
        while not self._ended.is_set():
            notified = self._subscription.wait(POLL_S)
            try:
                with self._lock:
                    # After a time-out all are looked at: a notification may have been missed.
                    followed = {job: at for job, at in self._positions.items() if not notified or job in notified}
                for job_id, position in followed.items():
                    self._send_events_of(job_id, position)
            except REDIS_AWAY:
                self._ended.wait(POLL_S)
            except Gone:
                return
            except Exception:  # the client reconnects if the connection is closed; a silent one would look alive
                log.exception("websocket_events_broke followed=%d", len(self._positions))
                self._connection.close()
                return

    def _send_events_of(self, job_id: str, position: str) -> None:
        try:
            events = self._services.hub.read(job_id, position)
        except UndecodableMessage as error:
            self._unfollow(job_id)
            self._connection.send(_problem_message(None, api_error(error)))
            return
        for streamed in events:
            message = EventMessage(job_id=job_id, position=streamed.position, event=streamed.event)
            self._connection.send(message.model_dump_json())
            with self._lock:
                self._positions[job_id] = streamed.position
            if streamed.event.type in FINAL_KINDS:
                self._unfollow(job_id)


def _problem_message(ref: str | int | None, error: ApiError) -> str:
    return ProblemMessage(ref=ref, problem=Problem.model_validate(error.problem())).model_dump_json()


def _key_of(message: Submit, raw: str) -> Idempotency | None:
    """The message's idempotency key, with the same meaning as over HTTP."""
    if message.idempotency_key is None:
        return None
    return idempotency_of(message.idempotency_key, "/v1/jobs", json.loads(raw)["body"])


def _ref_of(raw: str) -> str | int | None:
    """The message's `ref`; None if it cannot be read, or not be sent back."""
    with suppress(ValueError, LookupError, TypeError, RecursionError):
        ref = json.loads(raw)["ref"]
        check_plain(ref)
        return ref if isinstance(ref, str | int) else None
    return None
