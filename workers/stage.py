"""What every tier's job does around its engine: take a request up, survive its failures, commit once.

A stage's own part is `order` and `conclude`, which it passes in; this module knows neither tier's engine.
"""

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

from broker.records import RequestStore, Taken
from schemas.events import Started
from schemas.policy import Tier
from schemas.results import Failure, FailureKind
from workers.failures import EngineDied, RequestCancelled, RequestRefused
from workers.holding import Holdings

log = logging.getLogger(__name__)

ProductT = TypeVar("ProductT")


class Stage(Generic[ProductT]):
    """One tier's job function: `run(request_id)`.

    `submit` hands the request to the engine; `conclude` commits what came of it, given the seconds it took, and says
    whether the hold still stood. `run` blocks until then, may be called from many threads, and may run twice for a
    request: whoever commits first is right.
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
        self._submit = submit
        self._conclude = conclude

    def run(self, request_id: str) -> None:
        """Do the stage's work on one request."""
        taken = self._store.begin(request_id, self._tier, self._worker_id)
        if taken is None:
            log.info("request_passed_over request_id=%s tier=%s", request_id, self._tier)
            return
        with self._holdings.holding(taken.hold):
            started = Started(tier=self._tier, worker=self._worker_id, attempt=taken.hold.attempt)
            self._holdings.say(taken.hold, started)
            self._attempt(taken)

    def _attempt(self, taken: Taken) -> None:
        hold = taken.hold
        began = time.monotonic()
        try:
            product = self._submit(taken).result()
        except RequestRefused as refusal:
            self._fail(taken, refusal.kind, str(refusal))
        except RequestCancelled:
            # Either the hold is lost, and this does nothing, or the worker is stopping and others go on.
            if self._store.hand_back(hold):
                log.info("request_handed_back request_id=%s tier=%s", hold.request_id, hold.tier)
        except EngineDied as death:
            log.error("engine_died request_id=%s error=%s", hold.request_id, death)  # noqa: TRY400 - not this stack's
            self._store.surrender(hold)
        except Exception as error:  # what an engine raises for one request must not end as a request that hangs
            log.exception("request_broke_the_engine request_id=%s", hold.request_id)
            self._fail(taken, FailureKind.ENGINE_ERROR, f"{type(error).__name__}: {error}")
        else:
            if not self._conclude(taken, product, time.monotonic() - began):
                log.info("commit_came_too_late request_id=%s attempt=%s", hold.request_id, hold.attempt)

    def _fail(self, taken: Taken, kind: FailureKind, message: str) -> None:
        failure = Failure(kind=kind, tier=self._tier, message=message)
        if self._store.fail(taken.hold, failure):
            log.info("request_failed request_id=%s kind=%s", taken.hold.request_id, kind)
