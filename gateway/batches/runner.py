"""Finds batches that nobody runs, and runs them: a thread for each, in any number of processes."""

import logging
import threading

from broker.connection import REDIS_AWAY
from gateway.batches.run import BatchRun
from gateway.files import Locked
from gateway.openai_compatible.models import ModelTable
from gateway.services import Services
from gateway.submitting import Overloaded
from schemas.openai_files import ENDED, BatchProblem, BatchProblems

log = logging.getLogger(__name__)

#: Batches that one process runs at once.
MAX_RUNNING = 4
#: Seconds between looks for batches to run.
LOOK_S = 0.5


class BatchRunner:
    """Runs batches on threads of its own. A batch's lock sees to it that one process has it."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._models = ModelTable(services.admission.policies, services.settings.model_aliases)
        self._running: set[str] = set()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, name="batch-runner", daemon=True)

    def start(self) -> None:
        """Begin to look for batches."""
        self._thread.start()

    def close(self) -> None:
        """Take up no more. What runs goes on until the process ends, and is taken up by another."""
        self._stop.set()
        self._thread.join(timeout=LOOK_S * 4)

    def _look(self) -> None:
        while not self._stop.wait(LOOK_S):
            try:
                waiting = self._services.batches.unfinished()
            except REDIS_AWAY as error:
                log.warning("redis_away error=%s", error)
                continue
            with self._lock:
                chosen = [one for one in waiting if one not in self._running][: MAX_RUNNING - len(self._running)]
                self._running.update(chosen)
            for batch_id in chosen:
                threading.Thread(target=self._run, args=(batch_id,), name=batch_id, daemon=True).start()

    def _run(self, batch_id: str) -> None:
        try:
            with self._services.files.lock(batch_id):
                batch = self._services.batches.read(batch_id)
                if batch is not None and batch.status not in ENDED:
                    log.info("batch_taken_up batch_id=%s status=%s", batch_id, batch.status)
                    BatchRun(self._services, self._models, batch).run()
                    log.info("batch_ended batch_id=%s", batch_id)
        except Locked:
            pass  # another process runs it
        except (*REDIS_AWAY, OSError, Overloaded) as error:
            log.warning("batch_interrupted batch_id=%s error=%s", batch_id, error)  # taken up again at the next look
        except Exception as error:  # what breaks one batch must not break it again every second for ever
            log.exception("batch_broke batch_id=%s", batch_id)
            self._give_up(batch_id, error)
        finally:
            with self._lock:
                self._running.discard(batch_id)

    def _give_up(self, batch_id: str, error: Exception) -> None:
        batch = self._services.batches.read(batch_id)
        if batch is not None:
            found = BatchProblems(data=(BatchProblem(code="server_error", message=type(error).__name__),))
            ended = {"status": "failed", "failed_at": int(self._services.clock()), "errors": found}
            self._services.batches.write(batch.model_copy(update=ended))
