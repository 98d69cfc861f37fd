"""Carries one batch out, from wherever it stands to its end.

What was answered is what the parts of its files say; everything else can be found out again. So a run may end at any
point, and the next one, in whatever process, goes on: a line's jobs have the same ids every time.
"""

import codecs
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from broker.event_streams import POLL_S, EventSubscription
from gateway.batches import lines
from gateway.batches.lines import ENDINGS, BadLine, Line
from gateway.jobs.request_validation import Refused
from gateway.jobs.submission import Overloaded, submit_all
from gateway.openai import errors
from gateway.openai.models import ModelTable
from gateway.openai.shapes import Answer
from gateway.services import Services
from schemas.events import Done, Event, Failed
from schemas.openai_files import Batch, BatchCounts, BatchProblem, BatchProblems, StoredFile
from schemas.openai_models import OpenAIError
from schemas.requests import AcceptedRequest, JobRequest

#: The most lines of a batch (OpenAI's own limit).
MAX_LINES = 50_000
#: Seconds between looks at whether the batch is still wanted, and between notes of how far it is.
LOOK_S = 1.0
#: Seconds for which a run that makes way waits for the answers to what is under way. What comes later is not lost, but
#: must be fetched by the next run before the results expire.
DRAIN_S = 30.0

Ending = Literal["completed", "cancelled", "expired"]


@dataclass
class BatchLine:
    """A line whose jobs are under way."""

    line: Line
    job_ids: list[str]
    first: AcceptedRequest
    answers: dict[str, Answer] = field(default_factory=dict)


@dataclass(frozen=True)
class Checked:
    """What a first look at the input found."""

    total: int
    #: Numbers of lines whose `custom_id` an earlier line has.
    repeated: frozenset[int]


class BatchRun:
    """One run. Whoever makes it holds the batch's lock."""

    def __init__(
        self,
        services: Services,
        models: ModelTable,
        batch: Batch,
        must_make_way: Callable[[], bool] = lambda: False,
        drain_s: float = DRAIN_S,
    ) -> None:
        """`must_make_way`: whether the run is to end early, so that another batch's can begin; it is taken up again."""
        self._must_make_way = must_make_way
        self._drain_s = drain_s
        self._make_way_by: float | None = None
        self._services = services
        self._models = models
        self._batch = batch
        self._output = services.files.part(f"{batch.id}-output")
        self._errors = services.files.part(f"{batch.id}-errors")
        self._flights: dict[str, BatchLine] = {}
        self._done = bytearray()
        self._completed = self._failed = 0
        self._looked_at = 0.0
        self._ending: Ending | None = None

    def run(self) -> None:
        """Go on to the end, or until it must make way. Blocks.

        Leaves by an exception where Redis or the disk fails, to be run again.
        """
        try:
            if self._batch.finalizing_at is None and not self._work_through():
                return
        finally:
            self._output.close()
            self._errors.close()
        self._finish()

    def _work_through(self) -> bool:
        """Answer every line. False where the whole batch has failed, or it makes way for another."""
        checked = self._check()
        if isinstance(checked, BatchProblem):
            self._save(status="failed", failed_at=self._now(), errors=BatchProblems(data=(checked,)))
            return False
        self._recall(checked.total)
        self._save(status="in_progress", in_progress_at=self._batch.in_progress_at or self._now())
        ending = self._answer(checked)
        if ending is None:
            self._save()
            return False
        now = self._now()
        changes: dict[str, object] = {"finalizing_at": now}
        if ending == "cancelled":
            changes |= {"status": "cancelling", "cancelling_at": now, "cancelled_at": now}
        else:
            changes |= {"status": "finalizing", f"{ending}_at": now}
        self._save(**changes)
        return True

    def _finish(self) -> None:
        """Make files of the parts and say that it is over. Repeating it changes nothing."""
        batch = self._batch
        published = {}
        for kind, field_name in (("output", "output_file_id"), ("errors", "error_file_id")):
            name = f"{batch.id}-{kind}"
            description = StoredFile(
                id=f"file-{name.removeprefix('batch_')}",
                bytes=0,
                created_at=self._now(),
                filename=f"{batch.id}_{kind}.jsonl",
                purpose="batch_output",
                owner=batch.owner.name,
                expires_at=self._now() + self._services.settings.file_ttl_s,
            )
            stored = self._services.files.publish(name, description)
            published[field_name] = None if stored is None else stored.id
        ending = next(one for one in ("cancelled", "expired", "completed") if getattr(batch, f"{one}_at") is not None)
        self._services.batches.write(batch.model_copy(update={**published, "status": ending}))

    def _check(self) -> Checked | BatchProblem:
        """Count the lines, and find those that repeat another's `custom_id`."""
        seen: set[int] = set()
        repeated: set[int] = set()
        total = 0
        try:
            for number, raw in self._lines():
                total += 1
                if total > MAX_LINES:
                    return BatchProblem(code="too_many_tasks", message=f"there are more than {MAX_LINES} lines")
                custom_id = None if raw is None else lines.custom_id_of(raw)
                mark = hash(custom_id)
                if custom_id is not None and mark in seen:
                    repeated.add(number)
                seen.add(mark)
        except FileNotFoundError:
            return BatchProblem(code="file_not_found", message=f"there is no file {self._batch.input_file_id}")
        if not total:
            return BatchProblem(code="empty_file", message="the file holds no line")
        return Checked(total, frozenset(repeated))

    def _recall(self, total: int) -> None:
        """Learn from the parts which lines were finished by an earlier run."""
        for entry in self._output.lines():
            self._mark(lines.number_of(entry))
            self._completed += 1
        for entry in self._errors.lines():
            self._mark(lines.number_of(entry))
            self._failed += 1
        self._batch = self._batch.model_copy(update={"request_counts": BatchCounts(total=total)})

    def _answer(self, checked: Checked) -> Ending | None:
        """Have the lines answered. How that ended; None where it makes way for another batch before the end."""
        remaining = ((number, raw) for number, raw in self._lines() if not self._is_marked(number))
        following = next(remaining, None)
        room = self._services.settings.batch_in_flight
        with self._services.hub.listening() as listening:
            while (ending := self._look()) is None:
                makes_way = self._makes_way()
                while following is not None and len(self._flights) < room and not makes_way:
                    try:
                        self._start(*following, listening, checked)
                    except Overloaded:  # others' jobs fill the system: this line is tried again at the next look
                        break
                    following = next(remaining, None)
                if not self._flights and (following is None or makes_way):
                    return "completed" if following is None else None
                if self._make_way_by is not None and time.monotonic() >= self._make_way_by:
                    return None
                heard = listening.wait(LOOK_S)
                if self._is_time_to_look():  # a notification may have been missed
                    heard = set(self._flights)
                self._collect(heard & self._flights.keys(), listening)
        self._abandon(ending)
        while following is not None:
            number, raw = following
            custom_id = None if raw is None else lines.custom_id_of(raw)
            self._write_error(number, lines.not_run(self._batch.id, number, custom_id, *ENDINGS[ending]))
            following = next(remaining, None)
        return ending

    def _makes_way(self) -> bool:
        if self._make_way_by is None and self._must_make_way():
            self._make_way_by = time.monotonic() + self._drain_s
        return self._make_way_by is not None

    def _start(self, number: int, raw: bytes | None, listening: EventSubscription, checked: Checked) -> None:
        """Submit the line's jobs; a line that asks for nothing that can be done fails alone."""
        batch_id = self._batch.id
        try:
            if raw is None:
                raise BadLine(None, "line_too_long", f"line {number} has more than {self._limit} bytes")  # noqa: TRY301
            line = lines.read_line(number, raw, self._batch.endpoint, self._models)
            if number in checked.repeated:
                raise BadLine(line.custom_id, "duplicate_custom_id", f"line {number} repeats a custom_id")  # noqa: TRY301
            job_ids = [lines.job_id_of(batch_id, number, choice) for choice in range(len(line.jobs))]
            accepted = self._submit(line.jobs, job_ids)
        except BadLine as bad:
            self._write_error(number, lines.not_run(batch_id, number, bad.custom_id, bad.code, str(bad)))
        except Refused as refusal:
            entry = lines.not_run(batch_id, number, lines.custom_id_of(raw or b""), "invalid_request", str(refusal))
            self._write_error(number, entry)
        else:
            self._flights.update(dict.fromkeys(job_ids, BatchLine(line, job_ids, accepted[0])))
            for job_id in job_ids:
                listening.add(job_id)
                listening.hear(job_id)  # it may have ended by now: an earlier run may have submitted it

    def _submit(self, jobs: Sequence[JobRequest], job_ids: Sequence[str]) -> Sequence[AcceptedRequest]:
        return submit_all(self._services, jobs, owner=self._batch.owner, request_ids=job_ids).requests

    def _collect(self, job_ids: set[str], listening: EventSubscription) -> None:
        for job_id, event in self._services.hub.endings(job_ids).items():
            if job_id in self._flights:  # it may have gone with a sibling
                self._take(job_id, event, listening)

    def _take(self, job_id: str, event: Event | None, listening: EventSubscription) -> None:
        """What became of a job. `event` is None where its record has expired: it is done again."""
        flight = self._flights[job_id]
        if isinstance(event, Done):
            flight.answers[job_id] = Answer(job_id, event.result)
            if len(flight.answers) == len(flight.job_ids):
                answers = [flight.answers[one] for one in flight.job_ids]
                self._output.append(lines.answered(self._batch.id, flight.line, flight.first, answers))
                self._completed += 1
                self._land(flight, listening)
        elif event is None:
            self._submit([flight.line.jobs[flight.job_ids.index(job_id)]], [job_id])
        else:
            failure = errors.from_failure(event.failure) if isinstance(event, Failed) else errors.cancelled()
            self._fail(flight, failure, listening)

    def _fail(self, flight: BatchLine, failure: tuple[int, OpenAIError], listening: EventSubscription) -> None:
        for other in flight.job_ids:
            self._services.store.cancel(other)
        line = flight.line
        self._errors.append(lines.failed(self._batch.id, line.number, line.custom_id, *failure))
        self._failed += 1
        self._land(flight, listening)

    def _land(self, flight: BatchLine, listening: EventSubscription) -> None:
        self._mark(flight.line.number)
        for job_id in flight.job_ids:
            self._flights.pop(job_id, None)
            listening.discard(job_id)

    def _abandon(self, ending: Ending) -> None:
        """Cancel what is under way; what has been answered meanwhile still counts."""
        with self._services.hub.listening() as listening:
            self._collect(set(self._flights), listening)
            for flight in {id(one): one for one in self._flights.values()}.values():
                for job_id in flight.job_ids:
                    self._services.store.cancel(job_id)
                number, custom_id = flight.line.number, flight.line.custom_id
                self._write_error(number, lines.not_run(self._batch.id, number, custom_id, *ENDINGS[ending]))
        self._flights.clear()

    def _look(self) -> Ending | None:
        """Why the run should end early, if it should; and a note of how far it is. At most once in `LOOK_S`."""
        if not self._is_time_to_look():
            return None
        known = self._services.batches.read(self._batch.id)
        self._looked_at = time.monotonic()
        self._save()
        if known is not None and known.cancelling_at is not None:
            return "cancelled"
        return "expired" if self._now() >= self._batch.expires_at else None

    def _is_time_to_look(self) -> bool:
        return time.monotonic() - self._looked_at >= min(LOOK_S, POLL_S)

    def _write_error(self, number: int, entry: bytes) -> None:
        self._errors.append(entry)
        self._mark(number)
        self._failed += 1

    def _save(self, **changes: object) -> None:
        counts = BatchCounts(total=self._batch.request_counts.total, completed=self._completed, failed=self._failed)
        self._batch = self._batch.model_copy(update={"request_counts": counts, **changes})
        self._services.batches.write(self._batch)

    def _lines(self) -> Iterator[tuple[int, bytes | None]]:
        """The input's lines that are not blank, with their numbers; None for one that is too long to be read."""
        with self._services.files.open(self._batch.input_file_id) as source:
            number = 0
            while raw := source.readline(self._limit):
                number += 1
                whole = raw.endswith(b"\n") or len(raw) < self._limit
                ended = whole
                while not ended:
                    rest = source.readline(self._limit)
                    ended = not rest or rest.endswith(b"\n")
                if number == 1:
                    raw = raw.removeprefix(codecs.BOM_UTF8)  # what some editors put there
                if raw.strip():
                    yield number, raw if whole else None

    def _mark(self, number: int) -> None:
        place, bit = divmod(number, 8)
        self._done.extend(bytes(max(0, place + 1 - len(self._done))))
        self._done[place] |= 1 << bit

    def _is_marked(self, number: int) -> bool:
        place, bit = divmod(number, 8)
        return place < len(self._done) and bool(self._done[place] >> bit & 1)

    @property
    def _limit(self) -> int:
        return self._services.settings.max_body_bytes

    def _now(self) -> int:
        return int(self._services.clock())
