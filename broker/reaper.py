"""Looks after requests that nobody looks after: lapsed leases and passed deadlines.

Any number of processes may do so at any time: whatever is due is claimed in one script, so that each request goes to
one of them, and every change is fenced like any other.
"""

import logging

from broker.background import Loop
from broker.request_store import RequestStore

log = logging.getLogger(__name__)

#: Seconds between two looks of one process: a lease that has lapsed, or a deadline, is noticed after as many at most.
LOOK_S = 1.5


class Reaper:
    """Acts on what is due, again and again once its loop is started."""

    def __init__(self, store: RequestStore) -> None:
        self._store = store
        self.loop = Loop("reaper", self._look, every_s=LOOK_S)

    def _look(self) -> None:
        for request_id in self._store.expire():
            log.info("request_waits_again request_id=%s", request_id)
