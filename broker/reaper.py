"""Requeues requests whose lease has lapsed (`RequestStore.surrender`), and fails those that waited past their deadline.

Any number of processes may do so at the same time: one script claims the requests that are due, so that each goes to
one process, and every change is fenced like any other.
"""

import logging

from broker.background import Loop
from broker.request_store import RequestStore

log = logging.getLogger(__name__)

#: Seconds between two checks by one process, and thus the longest time until a lapsed lease or deadline is noticed.
LOOK_S = 1.8


class Reaper:
    """Acts on requests that are due, in a loop that its owner starts."""

    def __init__(self, store: RequestStore) -> None:
        self._store = store
        self.loop = Loop("reaper", self._look, every_s=LOOK_S)

    def _look(self) -> None:
        for request_id in self._store.expire():
            log.info("request_waits_again request_id=%s", request_id)
