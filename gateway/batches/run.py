"""Carries one batch out, from where the last run stopped to its end.

The parts of its output files say which lines have been answered, and a line's jobs have the same ids every time. So a
run may end at any point, and another one goes on from there, in whatever process.
"""

import codecs
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from broker.event_streams import POLL_S, EventSubscription
from gateway.batches import lines
from gateway.batches.lines import UNFINISHED, BadLine, Line
from gateway.http.errors import ApiError
from gateway.jobs.request_validation import Refused
from gateway.jobs.submission import Overloaded, submit_all
from gateway.openai.errors import no_answer
from gateway.openai.shapes import Answer
from gateway.services import Services
from schemas.events import Done, Event
from schemas.openai_files import Batch, BatchCounts, BatchProblem, BatchProblems, StoredFile
from schemas.requests import AcceptedRequest

#: The most lines of a batch (OpenAI's own limit).
MAX_LINES = 50_000
#: Seconds between checks whether the batch was cancelled or has expired, and between saves of its progress.
CHECK_S = 1.0
#: Seconds for which a preempted run waits for the jobs in flight. What is answered later is not lost, but the next run
#: must fetch it before the results expire.
DRAIN_S = 30.0

Ending = Literal["completed", "cancelled", "expired"]


@dataclass
class BatchLine:
    """A line whose jobs are in flight."""

    line: Line
    job_ids: list[str]
    first: AcceptedRequest
    answers: dict[str, Answer] = field(default_factory=dict)


@dataclass(frozen=True)
class InputSummary:
    """What the first pass over the input found."""

    num_lines: int
    #: Numbers of lines whose `custom_id` an earlier line has.
    repeated: frozenset[int]


class BatchRun:
    """One run. The caller holds the batch's lock."""

    def __init__(
        self,
        services: Services,
        batch: Batch,
        is_preempted: Callable[[], bool] = lambda: False,
        drain_s: float = DRAIN_S,
    ) -> None:
        """`is_preempted`: whether the run must end early for another batch; a later run goes on with this one."""
        self._is_preempted = is_preempted
        self._drain_s = drain_s
        #: When a preempted run ends (`time.monotonic`); None while it is not preempted.
        self._drained_by: float | None = None
        self._services = services
        self._batch = batch
        self._output = services.files.part(f"{batch.id}-output")
        self._errors = services.files.part(f"{batch.id}-errors")
        #: Lines in flight, by the id of each of their jobs.
        self._in_flight: dict[str, BatchLine] = {}
        #: Numbers of finished lines.
        self._finished: set[int] = set()
        self._num_completed = self._num_failed = 0
        self._checked_at = 0.0
        self._max_line_bytes = services.settings.max_body_bytes

    def run(self) -> None:
        """Go on to the end, or until preempted. Blocks.

        Raises the error of Redis or the disk that it meets, and can then be run again.
        """
        try:
            if self._batch.finalizing_at is None and not self._answer_lines():
                return
        finally:
            self._output.close()
            self._errors.close()
        self._publish()

    def _answer_lines(self) -> bool:
        """Answer every line. Returns False if the batch failed as a whole or this run of it was preempted."""
        summary = self._summarize_input()
        if isinstance(summary, BatchProblem):
            self._save(status="failed", failed_at=self._now(), errors=BatchProblems(data=(summary,)))
            return False
        self._read_progress(summary.num_lines)
        self._save(status="in_progress", in_progress_at=self._batch.in_progress_at or self._now())
        ending = self._run_lines(summary)
        if ending is None:
            self._save()
            return False
        now = self._now()
        if ending == "cancelled":
            self._save(finalizing_at=now, status="cancelling", cancelling_at=now, cancelled_at=now)
        else:
            self._save(finalizing_at=now, status="finalizing", **{f"{ending}_at": now})
        return True

    def _publish(self) -> None:
        """Make files of the parts and end the batch. Repeating it changes nothing."""
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
        ending = next(
            status for status in ("cancelled", "expired", "completed") if getattr(batch, f"{status}_at") is not None
        )
        self._services.batches.write(batch.model_copy(update={**published, "status": ending}))

    def _summarize_input(self) -> InputSummary | BatchProblem:
        """Count the lines, and find those that repeat another line's `custom_id`."""
        seen: set[int] = set()
        repeated: set[int] = set()
        num_lines = 0
        try:
            for number, raw in self._input_lines():
                num_lines += 1
                if num_lines > MAX_LINES:
                    return BatchProblem(code="too_many_tasks", message=f"there are more than {MAX_LINES} lines")
                custom_id = None if raw is None else lines.custom_id_of(raw)
                id_hash = hash(custom_id)
                if custom_id is not None and id_hash in seen:
                    repeated.add(number)
                seen.add(id_hash)
        except FileNotFoundError:
            return BatchProblem(code="file_not_found", message=f"there is no file {self._batch.input_file_id}")
        if not num_lines:
            return BatchProblem(code="empty_file", message="the file holds no line")
        return InputSummary(num_lines, frozenset(repeated))

    def _read_progress(self, num_lines: int) -> None:
        """Learn from the parts which lines an earlier run has finished."""
        completed = [lines.number_of(entry) for entry in self._output.lines()]
        failed = [lines.number_of(entry) for entry in self._errors.lines()]
        self._finished.update(completed, failed)
        self._num_completed, self._num_failed = len(completed), len(failed)
        self._batch = self._batch.model_copy(update={"request_counts": BatchCounts(total=num_lines)})

    def _run_lines(self, summary: InputSummary) -> Ending | None:
        """Carry the unfinished lines out. How that ended; None if it was preempted."""
        remaining = ((number, raw) for number, raw in self._input_lines() if number not in self._finished)
        following = next(remaining, None)
        max_in_flight = self._services.settings.batch_in_flight
        with self._services.hub.subscribe() as subscription:
            while (ending := self._check_ending()) is None:
                preempted = self._check_preempted()
                while following is not None and len(self._in_flight) < max_in_flight and not preempted:
                    try:
                        self._submit(*following, subscription, summary)
                    except Overloaded:  # others' jobs fill the system; the line is tried again after the wait below
                        break
                    following = next(remaining, None)
                if not self._in_flight and (following is None or preempted):
                    return "completed" if following is None else None
                if self._drained_by is not None and time.monotonic() >= self._drained_by:
                    return None
                notified = subscription.wait(CHECK_S)
                if self._is_time_to_check():  # a notification may have been missed
                    notified = set(self._in_flight)
                self._collect(notified & self._in_flight.keys(), subscription)
        self._abandon(ending)
        while following is not None:
            number, raw = following
            self._write_not_run(number, None if raw is None else lines.custom_id_of(raw), *UNFINISHED[ending])
            following = next(remaining, None)
        return ending

    def _check_preempted(self) -> bool:
        if self._drained_by is None and self._is_preempted():
            self._drained_by = time.monotonic() + self._drain_s
        return self._drained_by is not None

    def _submit(self, number: int, raw: bytes | None, subscription: EventSubscription, summary: InputSummary) -> None:
        """Submit the line's jobs. A line that cannot be carried out fails alone. Raises `Overloaded`."""
        batch = self._batch
        try:
            if raw is None:
                raise BadLine("line_too_long", f"line {number} has more than {self._max_line_bytes} bytes")  # noqa: TRY301
            line = lines.read_line(number, raw, batch.endpoint, self._services.models)
            if number in summary.repeated:
                raise BadLine("duplicate_custom_id", f"line {number} repeats a custom_id")  # noqa: TRY301
            job_ids = [lines.job_id_of(batch.id, number, choice) for choice in range(len(line.jobs))]
            submitted = submit_all(self._services, line.jobs, owner=batch.owner, request_ids=job_ids)
        except (BadLine, Refused) as error:
            code = error.code if isinstance(error, BadLine) else "invalid_request"
            self._write_not_run(number, lines.custom_id_of(raw or b""), code, str(error))
            return
        self._in_flight.update(dict.fromkeys(job_ids, BatchLine(line, job_ids, submitted.requests[0])))
        for job_id in job_ids:
            subscription.add(job_id)
            subscription.notify(job_id)  # an earlier run may have submitted it, and it may have ended

    def _collect(self, job_ids: set[str], subscription: EventSubscription) -> None:
        for job_id, event in self._services.hub.endings(job_ids).items():
            if job_id in self._in_flight:  # not so if another job of its line has just failed
                self._collect_job(job_id, event, subscription)

    def _collect_job(self, job_id: str, event: Event | None, subscription: EventSubscription) -> None:
        """`event` is the job's last; None where its record has expired: then the job is submitted again."""
        entry = self._in_flight[job_id]
        if isinstance(event, Done):
            entry.answers[job_id] = Answer(job_id, event.result)
            if len(entry.answers) == len(entry.job_ids):
                answers = [entry.answers[other] for other in entry.job_ids]
                self._output.append(lines.answered(self._batch.id, entry.line, entry.first, answers))
                self._num_completed += 1
                self._remove(entry, subscription)
        elif event is None:
            job = entry.line.jobs[entry.job_ids.index(job_id)]
            submit_all(self._services, [job], owner=self._batch.owner, request_ids=[job_id])
        elif (error := no_answer(event)) is not None:
            self._fail(entry, error, subscription)

    def _fail(self, entry: BatchLine, error: ApiError, subscription: EventSubscription) -> None:
        self._cancel(entry)
        self._errors.append(lines.failed(self._batch.id, entry.line.number, entry.line.custom_id, error))
        self._num_failed += 1
        self._remove(entry, subscription)

    def _cancel(self, entry: BatchLine) -> None:
        for job_id in entry.job_ids:
            self._services.store.cancel(job_id)

    def _remove(self, entry: BatchLine, subscription: EventSubscription) -> None:
        self._finished.add(entry.line.number)
        for job_id in entry.job_ids:
            self._in_flight.pop(job_id, None)
            subscription.discard(job_id)

    def _abandon(self, ending: Ending) -> None:
        """Cancel what is in flight. What has been answered by now still counts."""
        with self._services.hub.subscribe() as subscription:
            self._collect(set(self._in_flight), subscription)
            for entry in {id(entry): entry for entry in self._in_flight.values()}.values():
                self._cancel(entry)
                self._write_not_run(entry.line.number, entry.line.custom_id, *UNFINISHED[ending])
        self._in_flight.clear()

    def _check_ending(self) -> Ending | None:
        """Why the run should end early, if it should. Saves the progress too. At most once in `CHECK_S`."""
        if not self._is_time_to_check():
            return None
        known = self._services.batches.read(self._batch.id)
        self._checked_at = time.monotonic()
        self._save()
        if known is not None and known.cancelling_at is not None:
            return "cancelled"
        return "expired" if self._now() >= self._batch.expires_at else None

    def _is_time_to_check(self) -> bool:
        return time.monotonic() - self._checked_at >= min(CHECK_S, POLL_S)

    def _write_not_run(self, number: int, custom_id: str | None, code: str, message: str) -> None:
        self._errors.append(lines.not_run(self._batch.id, number, custom_id, code, message))
        self._finished.add(number)
        self._num_failed += 1

    def _save(self, **changes: object) -> None:
        total = self._batch.request_counts.total
        counts = BatchCounts(total=total, completed=self._num_completed, failed=self._num_failed)
        self._batch = self._batch.model_copy(update={"request_counts": counts, **changes})
        self._services.batches.write(self._batch)

    def _input_lines(self) -> Iterator[tuple[int, bytes | None]]:
        """The input's lines that are not blank, with their numbers; None for a line that is too long to be read."""
        limit = self._max_line_bytes
        with self._services.files.open(self._batch.input_file_id) as source:
            number = 0
            while raw := source.readline(limit):
                number += 1
                is_whole = raw.endswith(b"\n") or len(raw) < limit
                ended = is_whole
                while not ended:
                    rest = source.readline(limit)
                    ended = not rest or rest.endswith(b"\n")
                if number == 1:
                    raw = raw.removeprefix(codecs.BOM_UTF8)  # some editors write it
                if raw.strip():
                    yield number, raw if is_whole else None

    def _now(self) -> int:
        return int(self._services.clock())
