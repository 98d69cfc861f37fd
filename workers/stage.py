"""What every tier's job does around its engine: take a request up, survive its failures, commit once.

A stage's own part is `order` and `conclude`, which it passes in; this module knows neither tier's engine.
"""

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

from broker.connection import REDIS_AWAY
from broker.holds import Hold, Taken
from broker.records import MustBeAlone, RequestStore, deadline_failure
from schemas.events import Started
from schemas.policy import Tier
from schemas.results import Failure, FailureKind
from workers.failures import EngineDied, RequestCancelled, RequestRefused
from workers.holding import Holdings
from workers.isolation import Isolation

log = logging.getLogger(__name__)

ProductT = TypeVar("ProductT")
CommittedT = TypeVar("CommittedT")

#: Seconds between tries to commit while Redis is away.
REDIS_RETRY_S = 0.5


class Stage(Generic[ProductT]):
    """One tier's job function: `run(request_id)`.

    `submit` hands the request to the engine; `conclude` commits what came of
    it, given the seconds it took, and says whether the hold still stood; it may be called again where Redis was away.
    `run` blocks until then, may be called from many threads, and may run twice for a request: whoever commits first
    is right.
    """

    def __init__(
        self,
        tier: Tier,
        worker_id: str,
        store: RequestStore,
        holdings: Holdings,
        submit: Callable[[Taken], "Future[ProductT]"],
        conclude: Callable[[Taken, ProductT, float], bool],
    ) -> None:
        self._tier = tier
        self._worker_id = worker_id
        self._store = store
        self._holdings = holdings
        self._isolation = Isolation()
        self._submit = submit
        self._conclude = conclude

    def run(self, request_id: str) -> None:
        """Do the stage's work on the request, or on the one whose turn it is."""
        try:
            with self._isolation.using(alone=False):
                self._begin(request_id, alone=False)
        except MustBeAlone:
            log.info("last_attempt_waits_to_be_alone request_id=%s tier=%s", request_id, self._tier)
            with self._isolation.using(alone=True):
                self._begin(request_id, alone=True)

    def _begin(self, request_id: str, *, alone: bool) -> None:
        if self._holdings.stopping.is_set():  # it may have waited to be alone; the reaper pushes it again
            return
        taken = self._store.begin(request_id, self._tier, self._worker_id, alone=alone)
        if taken is None:
            log.info("request_passed_over request_id=%s tier=%s", request_id, self._tier)
            return
        hold = taken.hold
        if hold.request_id != request_id:
            log.info("turn_given request_id=%s to=%s tier=%s", request_id, hold.request_id, self._tier)
        with self._holdings.holding(hold, taken.remaining_s):
            self._holdings.say(hold, Started(tier=self._tier, worker=self._worker_id, attempt=hold.attempt))
            self._attempt(taken)

    def _attempt(self, taken: Taken) -> None:
        hold = taken.hold
        began = time.monotonic()
        try:
            product = self._work(taken)
        except RequestRefused as refusal:
            self._fail(taken, refusal.kind, str(refusal))
        except RequestCancelled:
            self._let_go(hold)
        except EngineDied as death:
            log.error("engine_died request_id=%s error=%s", hold.request_id, death)  # noqa: TRY400 - not this stack's
            reason = f"its engine died: {death}"
            self._commit(hold, lambda: self._store.surrender(hold, reason))
        except Exception as error:  # what an engine raises for one request must not end as a request that hangs
            log.exception("request_broke_the_engine request_id=%s", hold.request_id)
            self._fail(taken, FailureKind.ENGINE_ERROR, f"{type(error).__name__}: {error}")
        else:
            took_s = time.monotonic() - began
            if not self._commit(hold, lambda: self._conclude(taken, product, took_s)):
                log.info("commit_came_too_late request_id=%s attempt=%s", hold.request_id, hold.attempt)

    def _work(self, taken: Taken) -> ProductT:
        """What the engine makes of the request. Raises what the engine does; blocks."""
        hold = taken.hold
        if self._holdings.is_unwanted(hold):  # its deadline passed in the queue
            raise RequestCancelled(hold.request_id)
        future = self._submit(taken)
        if self._holdings.is_unwanted(hold):  # told to stop before the engine knew of it
            self._holdings.stop(hold)
        return future.result()

    def _let_go(self, hold: Hold) -> None:
        """The engine was stopped: the deadline has passed, the worker is stopping, or the hold is lost already."""
        if self._holdings.is_late(hold):
            failure = deadline_failure(self._tier, "a worker had it in hand")
            if self._commit(hold, lambda: self._store.fail(hold, failure)):
                log.info("deadline_passed request_id=%s tier=%s", hold.request_id, hold.tier)
        elif self._commit(hold, lambda: self._store.hand_back(hold)):
            log.info("request_handed_back request_id=%s tier=%s", hold.request_id, hold.tier)

    def _fail(self, taken: Taken, kind: FailureKind, message: str) -> None:
        failure = Failure(kind=kind, tier=self._tier, message=message)
        if self._commit(taken.hold, lambda: self._store.fail(taken.hold, failure)):
            log.info("request_failed request_id=%s kind=%s", taken.hold.request_id, kind)

    def _commit(self, hold: Hold, commit: Callable[[], CommittedT]) -> CommittedT:
        """Commit, and where Redis is away or full, again until it is back: the work is done and worth keeping.

        Once the worker is told to stop, Redis's error is raised; the lease then lapses and the work is done again.
        """
        self._holdings.rest(hold)
        while True:
            try:
                return commit()
            except REDIS_AWAY as error:
                log.warning("commit_waits request_id=%s error=%s", hold.request_id, error)
                if self._holdings.stopping.wait(REDIS_RETRY_S):
                    raise
