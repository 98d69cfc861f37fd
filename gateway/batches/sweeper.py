"""Removes files that have expired, and what processes that were killed left behind."""

import logging
import threading

from broker.connection import REDIS_AWAY
from gateway.files import Locked
from gateway.services import Services
from schemas.openai_files import ENDED
from schemas.wire import UndecodableMessage

log = logging.getLogger(__name__)

#: Seconds between two looks. A file that has expired cannot be found from that moment on; only its bytes stay longer.
SWEEP_S = 600.0
#: The lock of whoever sweeps.
LOCK = "sweeper"


class FileSweeper:
    """Sweeps on a thread of its own. Any number of processes may have one: they take turns."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="file-sweeper", daemon=True)

    def start(self) -> None:
        """Begin, with a look at once."""
        self._thread.start()

    def close(self) -> None:
        """Sweep no more. Blocks until the look that is under way has ended."""
        self._stop.set()
        self._thread.join()

    def step(self) -> None:
        """Sweep once; nothing where another process does at the moment. Raises Redis's errors and `OSError`."""
        batches, files = self._services.batches, self._services.files
        try:
            with files.lock(LOCK):
                batches.tidy(self._services.clock())
                in_use = {batch.input_file_id for batch in batches.read_all(batches.unfinished()).values()}
                swept = files.sweep(self._services.settings.file_ttl_s, in_use, self._is_over)
        except Locked:
            return
        if swept.expired or swept.orphans or swept.leftovers:
            log.info("files_swept expired=%d orphans=%d leftovers=%d", swept.expired, swept.orphans, swept.leftovers)

    def _run(self) -> None:
        while True:
            try:
                self.step()
            except (*REDIS_AWAY, OSError) as error:
                log.warning("files_not_swept error=%s", error)
            if self._stop.wait(SWEEP_S):
                return

    def _is_over(self, batch_id: str) -> bool:
        try:
            batch = self._services.batches.read(batch_id)
        except UndecodableMessage as error:  # another version's, which may still run it
            log.warning("batch_unreadable batch_id=%s error=%s", batch_id, error)
            return False
        return batch is None or batch.status in ENDED
