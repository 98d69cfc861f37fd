"""A job's event stream as a client follows it: parsed line by line, taken up again where it was cut off. No network."""

from collections.abc import Iterator

import httpx
from pydantic import ValidationError

from firstdraft.client.calls import Call, Reply, job_path, problem_of
from firstdraft.client.errors import Unreachable, api_error
from firstdraft.client.retries import RETRIED_STATUSES, RetryRule
from firstdraft.client.statistics import Counters
from schemas.events import FINAL_KINDS, Event, event_adapter

#: Seconds without a word after which a stream is taken for dead; the gateway sends a heartbeat every two.
SILENCE_S = 20.0


class Following:
    """One job's stream over any number of connections. Raises `Unreachable` or `APIError` from `lost`."""

    def __init__(self, job_id: str, rule: RetryRule, counters: Counters) -> None:
        self._job_id = job_id
        self._rule = rule
        self._counters = counters
        self._position: str | None = None
        self._retries = 0
        self._lines: dict[str, str] = {}
        self._ended = False

    def call(self) -> Call:
        """The request of the next connection. A half event of the last one is forgotten: it is sent again."""
        self._lines = {}
        headers = {"Accept": "text/event-stream"}
        if self._position is not None:
            headers["Last-Event-ID"] = self._position
        return Call("GET", f"{job_path(self._job_id)}/events", headers=headers, patience_s=SILENCE_S)

    def take(self, line: str) -> Iterator[Event]:
        """The event that the line completes, if it completes one that this version knows."""
        if line:
            name, _, value = line.partition(":")
            if name:  # a comment has none: the heartbeat
                self._lines[name] = value.removeprefix(" ")
            return
        lines, self._lines = self._lines, {}
        if "data" not in lines:
            return
        self._position = lines.get("id", self._position)
        self._retries = 0
        try:
            event = event_adapter.validate_json(lines["data"], extra="ignore")
        except ValidationError as error:
            if error.errors()[0]["type"] == "union_tag_invalid":  # a newer gateway tells more
                return
            raise
        self._ended = event.type in FINAL_KINDS
        yield event

    def is_over(self, reply: Reply) -> bool:
        """Whether the job has ended: its last event came, or the gateway has nothing more to tell (204)."""
        return self._ended or reply.status == httpx.codes.NO_CONTENT

    def lost(self, reply: Reply, share: float) -> float:
        """Seconds until the next connection, after this one ended early. `share` is random, in [0, 1)."""
        worth_it = reply.error is not None or reply.status in RETRIED_STATUSES or reply.status == httpx.codes.OK
        delay_s = self._rule.delay_s(self._retries, None, share) if worth_it else None
        if delay_s is None:
            if reply.status >= 400:
                raise api_error(problem_of(reply))
            raise Unreachable(f"the events of job {self._job_id} broke off: {reply.error!r}") from reply.error
        self._retries += 1
        self._counters.retried()
        return delay_s
