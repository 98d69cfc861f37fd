"""Finds batches that nobody runs, and runs them: a thread for each, in any number of processes."""

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
from gateway.openai.models import ModelTable
from gateway.services import Services
from schemas.openai_files import ENDED, BatchProblem, BatchProblems

log = logging.getLogger(__name__)

#: Batches that one process runs at once.
MAX_RUNNING = 4
#: Seconds between looks for batches to run.
LOOK_S = 1.0
#: Seconds for which a batch runs before it makes way for one that nobody runs, and waits for its next turn. Beginning
#: again reads its input once more.
SLICE_S = 60.0


@dataclass
class _Running:
    owner: str
    began_at: float = field(default_factory=time.monotonic)
    makes_way: threading.Event = field(default_factory=threading.Event)


class BatchRunner:
    """Runs batches on threads of its own. A batch's lock sees to it that one process has it."""

    def __init__(self, services: Services, slice_s: float = SLICE_S, drain_s: float = DRAIN_S) -> None:
        self._services = services
        self._slice_s, self._drain_s = slice_s, drain_s
        self._models = ModelTable(services.admission.policies, services.settings.model_aliases)
        #: What is run, and what is known of the others that have not ended.
        self._running: dict[str, _Running] = {}
        self._waiting: dict[str, Waiting] = {}
        self._lock = threading.Lock()
        #: Looks for batches again and again, once it is started. What runs goes on when it is closed, until the process
        #: ends, and is then taken up by another.
        self.loop = Loop("batch-runner", self.step, every_s=LOOK_S)

    def step(self) -> None:
        """Run what nobody runs, as far as there is room; where there is none, have a run make way in time.

        Raises Redis's errors. Does not wait for a run.
        """
        self._learn(self._services.batches.unfinished())
        with self._lock:
            running = Counter(one.owner for one in self._running.values())
            order = in_turn([one for one in self._waiting.values() if one.batch_id not in self._running], running)
        for waiting in order:
            if len(self._running) >= MAX_RUNNING:
                break
            self._begin(waiting)
        else:
            return
        self._ask_to_make_way([one for one in order if one.batch_id not in self._running])

    def _learn(self, unfinished: list[str]) -> None:
        """Whose the batches are that have not ended; forget all others."""
        unknown = [one for one in unfinished if one not in self._waiting]
        batches = self._services.batches.read_all(unknown)
        self._services.batches.drop_expired(one for one in unknown if one not in batches)
        found = {one.id: Waiting(one.id, one.owner.name, one.created_at) for one in batches.values()}
        with self._lock:
            self._waiting = {one: known for one in unfinished if (known := self._waiting.get(one) or found.get(one))}

    def _begin(self, waiting: Waiting) -> None:
        """Run it on a thread, unless another process does."""
        batch_id = waiting.batch_id
        with ExitStack() as lock:
            try:
                lock.enter_context(self._services.files.lock(batch_id))
            except Locked:
                return
            running = _Running(waiting.owner)
            with self._lock:
                self._running[batch_id] = running
            held = lock.pop_all()
        threading.Thread(target=self._run, args=(batch_id, running, held), name=batch_id, daemon=True).start()

    def _ask_to_make_way(self, waiting: list[Waiting]) -> None:
        """Where a batch waits that nobody runs: the oldest run that had its time, of the owner with the most runs."""
        with self._lock:
            running = list(self._running.values())
        if any(one.makes_way.is_set() for one in running):
            return
        had_theirs = [one for one in running if time.monotonic() - one.began_at >= self._slice_s]
        if had_theirs and any(self._is_free(one.batch_id) for one in waiting):
            of_owner = Counter(one.owner for one in running)
            max(had_theirs, key=lambda one: (of_owner[one.owner], -one.began_at)).makes_way.set()

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
                    BatchRun(self._services, self._models, batch, running.makes_way.is_set, self._drain_s).run()
                    log.info("batch_left batch_id=%s made_way=%s", batch_id, running.makes_way.is_set())
        except (*REDIS_AWAY, NoFreeConnection, OSError, Overloaded) as error:
            log.warning("batch_interrupted batch_id=%s error=%s", batch_id, error)  # taken up again at the next look
        except Exception as error:  # what breaks one batch must not break it again every second for ever
            log.exception("batch_broke batch_id=%s", batch_id)
            self._give_up(batch_id, error)
        finally:
            with self._lock:
                del self._running[batch_id]
                if (known := self._waiting.get(batch_id)) is not None:
                    self._waiting[batch_id] = replace(known, served_at=time.monotonic())

    def _give_up(self, batch_id: str, error: Exception) -> None:
        batch = self._services.batches.read(batch_id)
        if batch is not None:
            found = BatchProblems(data=(BatchProblem(code="server_error", message=type(error).__name__),))
            ended = {"status": "failed", "failed_at": int(self._services.clock()), "errors": found}
            self._services.batches.write(batch.model_copy(update=ended))
