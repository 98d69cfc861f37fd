"""What every tier's job does around its engine: take a request up, survive its failures, commit once.

A tier's own part is its `Work`; this module knows neither tier's engine.
Whatever goes wrong for one request between taking it up and its commit fails that request, at once and with its reason:
no exception leaves it to its lease, which others would see as a worker that died.
"""

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, Protocol, TypeVar

from broker.connection import REDIS_AWAY
from broker.holds import Hold, Taken
from broker.records import MustBeAlone, RequestStore, deadline_failure
from schemas.events import Started
from schemas.policy import Tier
from schemas.results import Failure, FailureKind
from workers.failures import EngineDied, RequestCancelled, RequestRefused
from workers.holding import Holdings
from workers.isolation import SharedUses, SoleUse

log = logging.getLogger(__name__)

ProductT = TypeVar("ProductT")
CommittedT = TypeVar("CommittedT")

#: Seconds between tries to commit while Redis is away.
REDIS_RETRY_S = 0.5


class Work(Protocol[ProductT]):
    """What one tier does with a request."""

    def submit(self, taken: Taken) -> "Future[ProductT]":
        """Hand the request to the engine."""

    def conclude(self, taken: Taken, product: ProductT, took_s: float) -> bool:
        """Commit what came of it after so many seconds; whether the hold still stood.

        May be called again where Redis was away.
        """

    def publish(self, taken: Taken, product: ProductT) -> None:
        """Tell others what the engine has read and written. Called after the commit; no request waits for it."""


class Stage(Generic[ProductT]):
    """One tier's job function: `run(request_id)`.

    `run` blocks until the request has been committed, may be called from many threads, and may run twice for a
    request: whoever commits first is right.
    """

    def __init__(
        self, tier: Tier, worker_id: str, store: RequestStore, holdings: Holdings, work: Work[ProductT]
    ) -> None:
        self._tier = tier
        self._worker_id = worker_id
        self._store = store
        self._holdings = holdings
        self._engine_uses = SharedUses()
        self._tiers_work = work

    def run(self, request_id: str) -> None:
        """Do the stage's work on the request, or on the one whose turn it is."""
        try:
            with self._engine_uses.shared():
                self._begin(request_id, None)
        except MustBeAlone:
            log.info("attempt_waits_to_be_alone request_id=%s tier=%s", request_id, self._tier)
            with self._engine_uses.sole() as use:
                self._begin(request_id, use)

    def _begin(self, request_id: str, sole_use: SoleUse | None) -> None:
        if self._holdings.stopping.is_set():  # it may have waited to be alone; the reaper pushes it again
            return
        taken = self._store.begin(request_id, self._tier, self._worker_id, alone=sole_use is not None)
        if taken is None:
            log.info("request_passed_over request_id=%s tier=%s", request_id, self._tier)
            return
        hold = taken.hold
        if hold.request_id != request_id:
            log.info("turn_given request_id=%s to=%s tier=%s", request_id, hold.request_id, self._tier)
        share = None
        if sole_use is not None and not taken.alone:
            share = sole_use.share
            if not taken.num_lost:  # another's turn came, which need not be alone
                share()
        with self._holdings.holding(hold, taken.remaining_s, end_sole_use=share):
            self._holdings.say(hold, Started(tier=self._tier, worker=self._worker_id, attempt=hold.attempt))
            self._attempt(taken)

    def _attempt(self, taken: Taken) -> None:
        hold = taken.hold
        began = time.monotonic()
        try:
            product = self._work(taken)
        except RequestRefused as refusal:
            self._fail(hold, refusal.kind, str(refusal))
        except RequestCancelled:
            self._let_go(hold)
        except EngineDied as death:
            log.error("engine_died request_id=%s error=%s", hold.request_id, death)  # noqa: TRY400 - not this stack's
            reason = f"its engine died: {death}"
            self._commit(hold, lambda: self._store.surrender(hold, reason))
        except REDIS_AWAY:  # it could not be asked for before the worker was told to stop; the lease lapses
            raise
        except Exception as error:
            log.exception("request_broke_the_engine request_id=%s", hold.request_id)
            self._fail(hold, FailureKind.ENGINE_ERROR, f"{type(error).__name__}: {error}")
        else:
            self._finish(taken, product, time.monotonic() - began)

    def _finish(self, taken: Taken, product: ProductT, took_s: float) -> None:
        """Commit what came of the request, then tell others of it."""
        hold = taken.hold
        try:
            committed = self._commit(hold, lambda: self._tiers_work.conclude(taken, product, took_s))
        except REDIS_AWAY:
            raise
        except Exception as error:
            log.exception("request_not_concluded request_id=%s", hold.request_id)
            self._fail(hold, FailureKind.INTERNAL_ERROR, f"what the engine made could not be committed: {error!r}")
            return
        if not committed:
            log.info("commit_came_too_late request_id=%s attempt=%s", hold.request_id, hold.attempt)
            return
        try:
            self._tiers_work.publish(taken, product)
        except Exception:  # the request has its answer; what is published is a hint to others
            log.exception("prefix_not_published request_id=%s", hold.request_id)

    def _work(self, taken: Taken) -> ProductT:
        """What the engine makes of the request. Raises what the engine does; blocks."""
        hold = taken.hold
        if self._holdings.is_unwanted(hold):  # its deadline passed in the queue
            raise RequestCancelled(hold.request_id)
        future = self._tiers_work.submit(taken)
        if self._holdings.is_unwanted(hold):  # told to stop before the engine knew of it
            self._holdings.stop(hold)
        return future.result()

    def _let_go(self, hold: Hold) -> None:
        """The engine was stopped: the deadline has passed, the worker is stopping, or the hold is lost already."""
        if (error := self._holdings.unpublishable(hold)) is not None:
            self._fail(hold, FailureKind.INTERNAL_ERROR, f"its events could not be published: {error!r}")
        elif self._holdings.is_late(hold):
            failure = deadline_failure(self._tier, "a worker had it in hand")
            if self._commit(hold, lambda: self._store.fail(hold, failure)):
                log.info("deadline_passed request_id=%s tier=%s", hold.request_id, hold.tier)
        elif self._commit(hold, lambda: self._store.hand_back(hold)):
            log.info("request_handed_back request_id=%s tier=%s", hold.request_id, hold.tier)

    def _fail(self, hold: Hold, kind: FailureKind, message: str) -> None:
        # An error may repeat what no message can hold (half of a surrogate pair), or say nothing.
        sayable = message.encode(errors="backslashreplace").decode() or kind.value
        failure = Failure(kind=kind, tier=self._tier, message=sayable)
        if self._commit(hold, lambda: self._store.fail(hold, failure)):
            log.info("request_failed request_id=%s kind=%s", hold.request_id, kind)

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
