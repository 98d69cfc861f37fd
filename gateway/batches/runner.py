"""Schedules batches: each run has a thread, in any number of processes, and owners take turns."""

import logging
import threading
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

from broker.background import Loop
from broker.connection import REDIS_AWAY, NoFreeConnection
from gateway.batches.files import Locked
from gateway.batches.run import DRAIN_S, BatchRun
from gateway.batches.turns import Waiting, in_turn
from gateway.jobs.submission import Overloaded
from gateway.services import Services
from schemas.openai_files import ENDED, BatchProblem, BatchProblems

log = logging.getLogger(__name__)

#: Batches that one process runs at once.
MAX_RUNNING = 4
#: Seconds between looks for batches to run.
LOOK_S = 1.0
#: Seconds that a batch runs before it may be preempted for one that nobody runs. A batch that is preempted reads its
#: input again when its next turn comes.
SLICE_S = 60.0


@dataclass
class _Running:
    owner: str
    began_at: float = field(default_factory=time.monotonic)
    preempted: threading.Event = field(default_factory=threading.Event)


class BatchRunner:
    """Runs batches on threads. A lock on each batch keeps other processes from running it too."""

    def __init__(self, services: Services, slice_s: float = SLICE_S, drain_s: float = DRAIN_S) -> None:
        self._services = services
        self._slice_s, self._drain_s = slice_s, drain_s
        #: Running and waiting batches, by id. `_waiting` has every unfinished batch that is known, running ones too.
        self._running: dict[str, _Running] = {}
        self._waiting: dict[str, Waiting] = {}
        self._lock = threading.Lock()
        #: Calls `step`. Closing it ends no run. If the process dies, another one goes on with its runs.
        self.loop = Loop("batch-runner", self.step, every_s=LOOK_S)

    def step(self) -> None:
        """Start runs of batches that nobody runs. Where there is no room, preempt a run that had its time slice.

        Raises Redis's errors. Does not wait for a run.
        """
        self._refresh(self._services.batches.unfinished())
        with self._lock:
            running = Counter(run.owner for run in self._running.values())
            order = in_turn([batch for batch in self._waiting.values() if batch.batch_id not in self._running], running)
        for waiting in order:
            if len(self._running) >= MAX_RUNNING:
                break
            self._start(waiting)
        else:
            return
        self._preempt_for([batch for batch in order if batch.batch_id not in self._running])

    def _refresh(self, unfinished: list[str]) -> None:
        """Learn the owners of new batches; forget batches that have ended."""
        unknown = [batch_id for batch_id in unfinished if batch_id not in self._waiting]
        batches = self._services.batches.read_all(unknown)
        self._services.batches.drop_expired(batch_id for batch_id in unknown if batch_id not in batches)
        found = {batch.id: Waiting(batch.id, batch.owner.name, batch.created_at) for batch in batches.values()}
        with self._lock:
            known = found | self._waiting
            self._waiting = {batch_id: known[batch_id] for batch_id in unfinished if batch_id in known}

    def _start(self, waiting: Waiting) -> None:
        """Run it on a thread, unless another process does."""
        batch_id = waiting.batch_id
        with ExitStack() as stack:
            try:
                stack.enter_context(self._services.files.lock(batch_id))
            except Locked:
                return
            running = _Running(waiting.owner)
            with self._lock:
                self._running[batch_id] = running
            lock = stack.pop_all()
        threading.Thread(target=self._run, args=(batch_id, running, lock), name=batch_id, daemon=True).start()

    def _preempt_for(self, waiting: list[Waiting]) -> None:
        """Preempt the oldest run that had its time slice, of the owner with the most runs, if a batch needs its place.

        One at a time.
        """
        with self._lock:
            running = list(self._running.values())
        if any(run.preempted.is_set() for run in running):
            return
        had_slice = [run for run in running if time.monotonic() - run.began_at >= self._slice_s]
        if had_slice and any(self._is_free(batch.batch_id) for batch in waiting):
            of_owner = Counter(run.owner for run in running)
            max(had_slice, key=lambda run: (of_owner[run.owner], -run.began_at)).preempted.set()

    def _is_free(self, batch_id: str) -> bool:
        try:
            with self._services.files.lock(batch_id):
                return True
        except Locked:
            return False

    def _run(self, batch_id: str, running: _Running, lock: ExitStack) -> None:
        try:
            with lock:
                batch = self._services.batches.read(batch_id)
                if batch is not None and batch.status not in ENDED:
                    log.info("batch_taken_up batch_id=%s status=%s", batch_id, batch.status)
                    BatchRun(self._services, batch, running.preempted.is_set, self._drain_s).run()
                    log.info("batch_left batch_id=%s made_way=%s", batch_id, running.preempted.is_set())
        except (*REDIS_AWAY, NoFreeConnection, OSError, Overloaded) as error:
            log.warning("batch_interrupted batch_id=%s error=%s", batch_id, error)  # a later step runs it again
        except Exception as error:  # the next run would break in the same way, again and again
            log.exception("batch_broke batch_id=%s", batch_id)
            self._give_up(batch_id, error)
        finally:
            with self._lock:
                del self._running[batch_id]
                if (waiting := self._waiting.get(batch_id)) is not None:
                    self._waiting[batch_id] = replace(waiting, served_at=time.monotonic())

    def _give_up(self, batch_id: str, error: Exception) -> None:
        batch = self._services.batches.read(batch_id)
        if batch is not None:
            found = BatchProblems(data=(BatchProblem(code="server_error", message=type(error).__name__),))
            ended = {"status": "failed", "failed_at": int(self._services.clock()), "errors": found}
            self._services.batches.write(batch.model_copy(update=ended))
