"""What is said over one WebSocket: requests are obeyed in turn, events are sent as they come."""

import json
import logging
import threading

from flask import Response
from pydantic import ValidationError

from broker.connection import REDIS_AWAY
from broker.event_streams import POLL_S, EventSubscription
from broker.idempotency import Idempotency
from gateway.http.authentication import check_scope
from gateway.http.error_handlers import ANSWERS, answer_to
from gateway.http.idempotency import idempotency_of
from gateway.http.problems import invalid, problem
from gateway.http.statistics import described
from gateway.jobs.answers import no_such_job
from gateway.jobs.submission import submit
from gateway.services import Services
from gateway.websocket.connection import Connection, Gone
from schemas.events import FINAL_KINDS
from schemas.owners import Scope
from schemas.plain import check_plain
from schemas.problems import Problem
from schemas.sockets import Asked, Cancel, Follow, Submit, ToldEvent, ToldJob, ToldProblem, asked_adapter
from schemas.wire import UndecodableMessage

log = logging.getLogger(__name__)

#: The most jobs that one connection may follow at once.
MAX_FOLLOWED = 1_000


class TooManyFollowed(Exception):
    """The connection follows as many jobs as it may."""


class Session:
    """One connection's conversation. `run` blocks until the other side leaves."""

    def __init__(self, services: Services, connection: Connection, listening: EventSubscription) -> None:
        self._services = services
        self._connection = connection
        self._listening = listening
        #: Of each job that is followed, the position of the last event that was sent.
        self._positions: dict[str, str] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()

    def run(self) -> None:
        """Obey what is asked, on this thread, and send events, on another."""
        telling = threading.Thread(target=self._tell_events, name="websocket-events", daemon=True)
        telling.start()
        try:
            while True:
                self._connection.send(self._obeyed(self._connection.receive()))
        except Gone:
            pass  # whose jobs go on: another connection can follow them
        finally:
            self._ended.set()
            self._listening.hear("")  # ends the other thread's wait
            self._connection.close()
            telling.join(POLL_S)

    def _obeyed(self, raw: str) -> str:
        """The answer to a message."""
        ref = _ref_of(raw)
        try:
            return self._obey(asked_adapter.validate_json(raw), raw).model_dump_json()
        except ValidationError as error:
            response = invalid(error)
        except TooManyFollowed as error:
            response = problem(429, "Too many jobs followed", str(error))
        except NoSuchJob as error:
            response = no_such_job(self._services.store, error.job_id)
        except tuple(ANSWERS) as error:
            response = answer_to(error)
        return _told_problem(ref, response)

    def _obey(self, asked: Asked, raw: str) -> ToldJob:
        match asked:
            case Submit():
                check_scope(Scope.SUBMIT)
                self._check_room()
                job_id = submit(self._services, asked.body, key=_key_of(asked, raw)).request_id
                self._follow(job_id, "0-0")
            case Follow():
                self._check_room()
                job_id = asked.job_id
                if self._services.store.state(job_id) is None:  # before anything of another's is heard
                    raise NoSuchJob(job_id)
                self._follow(job_id, asked.after)
            case Cancel():
                check_scope(Scope.SUBMIT)
                job_id = asked.job_id
                self._services.store.cancel(job_id)
        record = self._services.store.read(job_id)
        if record is None:
            self._forget(job_id)
            raise NoSuchJob(job_id)
        return ToldJob(ref=asked.ref, job=described(record))

    def _check_room(self) -> None:
        if len(self._positions) >= MAX_FOLLOWED:
            raise TooManyFollowed(f"This connection follows {MAX_FOLLOWED} jobs already.")

    def _follow(self, job_id: str, after: str) -> None:
        with self._lock:
            self._positions[job_id] = after
        self._listening.add(job_id)
        self._listening.hear(job_id)  # what has happened is sent at once

    def _forget(self, job_id: str) -> None:
        self._listening.discard(job_id)
        with self._lock:
            self._positions.pop(job_id, None)

    def _tell_events(self) -> None:
        while not self._ended.is_set():
            heard = self._listening.wait(POLL_S)
            try:
                with self._lock:
                    # Without a word for so long, a notification may have been missed.
                    followed = {one: at for one, at in self._positions.items() if not heard or one in heard}
                for job_id, position in followed.items():
                    self._tell_events_of(job_id, position)
            except REDIS_AWAY:
                self._ended.wait(POLL_S)
            except Gone:
                return
            except Exception:  # better no connection, which its client makes anew, than one that says nothing any more
                log.exception("websocket_events_broke followed=%d", len(self._positions))
                self._connection.close()
                return

    def _tell_events_of(self, job_id: str, position: str) -> None:
        try:
            events = self._services.hub.read(job_id, position)
        except UndecodableMessage as error:
            self._forget(job_id)
            self._connection.send(_told_problem(None, answer_to(error)))
            return
        for streamed in events:
            told = ToldEvent(job_id=job_id, position=streamed.position, event=streamed.event)
            self._connection.send(told.model_dump_json())
            with self._lock:
                self._positions[job_id] = streamed.position
            if streamed.event.type in FINAL_KINDS:
                self._forget(job_id)


class NoSuchJob(Exception):
    """There is no such job (any more)."""

    def __init__(self, job_id: str) -> None:
        super().__init__(job_id)
        self.job_id = job_id


def _told_problem(ref: str | int | None, response: Response) -> str:
    """A problem document as a message."""
    found = Problem.model_validate_json(response.get_data())
    return ToldProblem(ref=ref, problem=found).model_dump_json()


def _key_of(asked: Submit, raw: str) -> Idempotency | None:
    """What the message's key stands for: the same as over HTTP."""
    if asked.idempotency_key is None:
        return None
    return idempotency_of(asked.idempotency_key, "/v1/jobs", json.loads(raw)["body"])


def _ref_of(raw: str) -> str | int | None:
    """What the message calls itself, if it can be read at all and given back."""
    try:
        ref = json.loads(raw)["ref"]
        check_plain(ref)
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return ref if isinstance(ref, str | int) else None
