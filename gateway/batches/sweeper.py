"""Removes expired files, and what killed processes left behind."""

import logging

from broker.background import Loop
from gateway.batches.files import Locked
from gateway.services import Services
from schemas.openai_files import ENDED
from schemas.wire import UndecodableMessage

log = logging.getLogger(__name__)

#: Seconds between two sweeps. An expired file cannot be found from that moment on; only its bytes stay longer.
SWEEP_S = 600.0
#: Seconds of nothing but failures after which sweeping counts as broken: more than one sweep must have failed.
BROKEN_AFTER_S = 2 * SWEEP_S + 60.0
#: The lock that a sweep holds.
LOCK = "sweeper"


class FileSweeper:
    """Sweeps again and again. Each process may have one: a lock lets one sweep at a time."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self.loop = Loop("file-sweeper", self.step, every_s=SWEEP_S, broken_after_s=BROKEN_AFTER_S)

    def step(self) -> None:
        """Sweep once, unless another process is sweeping. Raises Redis's errors and `OSError`."""
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

    def _is_over(self, batch_id: str) -> bool:
        try:
            batch = self._services.batches.read(batch_id)
        except UndecodableMessage as error:  # written by another version, which may still run it
            log.warning("batch_unreadable batch_id=%s error=%s", batch_id, error)
            return False
        return batch is None or batch.status in ENDED
