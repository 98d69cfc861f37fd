"""A job's event stream as a client follows it: parsed, and resumed after the last event received. No network."""

from collections.abc import Iterator

import httpx
from pydantic import ValidationError

from firstdraft.client.calls import Call, Reply, job_path, problem_of
from firstdraft.client.errors import Unreachable, api_error
from firstdraft.client.retries import RETRIED_STATUSES, RetryRule
from firstdraft.client.statistics import Counters
from schemas.event_lines import EventLines
from schemas.events import FINAL_KINDS, Event, event_adapter

#: Seconds of silence after which a connection counts as dead; the gateway sends a heartbeat every two.
SILENCE_S = 20.0


class Following:
    """One job's events over any number of connections."""

    def __init__(self, job_id: str, rule: RetryRule, counters: Counters) -> None:
        self._job_id = job_id
        self._rule = rule
        self._counters = counters
        self._position: str | None = None
        self._retries = 0
        self._lines = EventLines()
        self._fields: dict[str, str] = {}
        self._ended = False

    def call(self) -> Call:
        """The next connection's request. A partial event of the last connection is dropped: it is sent again."""
        self._lines, self._fields = EventLines(), {}
        headers = {"Accept": "text/event-stream"}
        if self._position is not None:
            headers["Last-Event-ID"] = self._position
        return Call("GET", f"{job_path(self._job_id)}/events", headers=headers, patience_s=SILENCE_S)

    def take(self, chunk: bytes) -> Iterator[Event]:
        """The events that the chunk completes; kinds that this version does not know are left out."""
        for line in self._lines.take(chunk):
            name, _, value = line.partition(":")
            if name:  # the heartbeat is a comment, which has no name
                self._fields[name] = value.removeprefix(" ")
            elif not line:
                fields, self._fields = self._fields, {}
                yield from self._event(fields)

    def _event(self, fields: dict[str, str]) -> Iterator[Event]:
        if "data" not in fields:
            return
        self._position = fields.get("id", self._position)
        self._retries = 0
        try:
            event = event_adapter.validate_json(fields["data"], extra="ignore")
        except ValidationError as error:
            if error.errors()[0]["type"] == "union_tag_invalid":  # sent by a newer gateway
                return
            raise
        self._ended = event.type in FINAL_KINDS
        yield event

    def is_over(self, reply: Reply) -> bool:
        """Whether the job has ended: its final event came, or the gateway has no more events (204)."""
        return self._ended or reply.status == httpx.codes.NO_CONTENT

    def delay_s(self, reply: Reply, share: float) -> float:
        """Seconds until the next connection after one that ended early. `share` is random, in [0, 1).

        Counts a retry. Raises `Unreachable` or `APIError` when there is no retry left or none is worth it.
        """
        worth_it = reply.error is not None or reply.status in RETRIED_STATUSES or reply.status == httpx.codes.OK
        delay_s = self._rule.delay_s(self._retries, None, share) if worth_it else None
        if delay_s is None:
            if reply.status >= 400:
                raise api_error(problem_of(reply))
            raise Unreachable(f"the events of job {self._job_id} broke off: {reply.error!r}") from reply.error
        self._retries += 1
        self._counters.retried()
        return delay_s
