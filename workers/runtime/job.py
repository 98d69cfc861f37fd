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
from broker.leases import Lease, LeasedRequest
from broker.request_store import MustBeAlone, RequestStore, deadline_failure
from schemas.events import Started
from schemas.policy import Tier
from schemas.results import Failure, FailureKind
from workers.runtime.exclusive_access import SharedUses, SoleUse
from workers.runtime.failures import EngineDied, RequestCancelled, RequestRefused
from workers.runtime.in_flight import InFlight

log = logging.getLogger(__name__)

ProductT = TypeVar("ProductT")
CommittedT = TypeVar("CommittedT")

#: Seconds between tries to commit while Redis is away.
REDIS_RETRY_S = 0.5


class Work(Protocol[ProductT]):
    """What one tier does with a request."""

    def submit(self, taken: LeasedRequest) -> "Future[ProductT]":
        """Hand the request to the engine."""

    def conclude(self, taken: LeasedRequest, product: ProductT, took_s: float) -> bool:
        """Commit what came of it after so many seconds; whether the hold still stood.

        May be called again where Redis was away.
        """

    def publish(self, taken: LeasedRequest, product: ProductT) -> None:
        """Tell others what the engine has read and written. Called after the commit; no request waits for it."""


class Stage(Generic[ProductT]):
    """One tier's job function: `run(request_id)`.

    `run` blocks until the request has been committed, may be called from many threads, and may run twice for a
    request: whoever commits first is right.
    """

    def __init__(
        self, tier: Tier, worker_id: str, store: RequestStore, in_flight: InFlight, work: Work[ProductT]
    ) -> None:
        self._tier = tier
        self._worker_id = worker_id
        self._store = store
        self._in_flight = in_flight
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
        if self._in_flight.stopping.is_set():  # it may have waited to be alone; the reaper pushes it again
            return
        taken = self._store.begin(request_id, self._tier, self._worker_id, alone=sole_use is not None)
        if taken is None:
            log.info("request_passed_over request_id=%s tier=%s", request_id, self._tier)
            return
        lease = taken.lease
        if lease.request_id != request_id:
            log.info("turn_given request_id=%s to=%s tier=%s", request_id, lease.request_id, self._tier)
        share = None
        if sole_use is not None and not taken.alone:
            share = sole_use.share
            if not taken.num_lost:  # another's turn came, which need not be alone
                share()
        with self._in_flight.holding(lease, taken.remaining_s, end_sole_use=share):
            self._in_flight.say(lease, Started(tier=self._tier, worker=self._worker_id, attempt=lease.attempt))
            self._attempt(taken)

    def _attempt(self, taken: LeasedRequest) -> None:
        lease = taken.lease
        began = time.monotonic()
        try:
            product = self._work(taken)
        except RequestRefused as refusal:
            self._fail(lease, refusal.kind, str(refusal))
        except RequestCancelled:
            self._let_go(lease)
        except EngineDied as death:
            log.error("engine_died request_id=%s error=%s", lease.request_id, death)  # noqa: TRY400 - not this stack's
            reason = f"its engine died: {death}"
            self._commit(lease, lambda: self._store.surrender(lease, reason))
        except REDIS_AWAY:  # it could not be asked for before the worker was told to stop; the lease lapses
            raise
        except Exception as error:
            log.exception("request_broke_the_engine request_id=%s", lease.request_id)
            self._fail(lease, FailureKind.ENGINE_ERROR, f"{type(error).__name__}: {error}")
        else:
            self._finish(taken, product, time.monotonic() - began)

    def _finish(self, taken: LeasedRequest, product: ProductT, took_s: float) -> None:
        """Commit what came of the request, then tell others of it."""
        lease = taken.lease
        try:
            committed = self._commit(lease, lambda: self._tiers_work.conclude(taken, product, took_s))
        except REDIS_AWAY:
            raise
        except Exception as error:
            log.exception("request_not_concluded request_id=%s", lease.request_id)
            self._fail(lease, FailureKind.INTERNAL_ERROR, f"what the engine made could not be committed: {error!r}")
            return
        if not committed:
            log.info("commit_came_too_late request_id=%s attempt=%s", lease.request_id, lease.attempt)
            return
        try:
            self._tiers_work.publish(taken, product)
        except Exception:  # the request has its answer; what is published is a hint to others
            log.exception("prefix_not_published request_id=%s", lease.request_id)

    def _work(self, taken: LeasedRequest) -> ProductT:
        """What the engine makes of the request. Raises what the engine does; blocks."""
        lease = taken.lease
        if self._in_flight.is_unwanted(lease):  # its deadline passed in the queue
            raise RequestCancelled(lease.request_id)
        future = self._tiers_work.submit(taken)
        if self._in_flight.is_unwanted(lease):  # told to stop before the engine knew of it
            self._in_flight.stop(lease)
        return future.result()

    def _let_go(self, lease: Lease) -> None:
        """The engine was stopped: the deadline has passed, the worker is stopping, or the hold is lost already."""
        if (error := self._in_flight.unpublishable(lease)) is not None:
            self._fail(lease, FailureKind.INTERNAL_ERROR, f"its events could not be published: {error!r}")
        elif self._in_flight.is_late(lease):
            failure = deadline_failure(self._tier, "a worker had it in hand")
            if self._commit(lease, lambda: self._store.fail(lease, failure)):
                log.info("deadline_passed request_id=%s tier=%s", lease.request_id, lease.tier)
        elif self._commit(lease, lambda: self._store.hand_back(lease)):
            log.info("request_handed_back request_id=%s tier=%s", lease.request_id, lease.tier)

    def _fail(self, lease: Lease, kind: FailureKind, message: str) -> None:
        # An error may repeat what no message can hold (half of a surrogate pair), or say nothing.
        sayable = message.encode(errors="backslashreplace").decode() or kind.value
        failure = Failure(kind=kind, tier=self._tier, message=sayable)
        if self._commit(lease, lambda: self._store.fail(lease, failure)):
            log.info("request_failed request_id=%s kind=%s", lease.request_id, kind)

    def _commit(self, lease: Lease, commit: Callable[[], CommittedT]) -> CommittedT:
        """Commit, and where Redis is away or full, again until it is back: the work is done and worth keeping.

        Once the worker is told to stop, Redis's error is raised; the lease then lapses and the work is done again.
        """
        self._in_flight.rest(lease)
        while True:
            try:
                return commit()
            except REDIS_AWAY as error:
                log.warning("commit_waits request_id=%s error=%s", lease.request_id, error)
                if self._in_flight.stopping.wait(REDIS_RETRY_S):
                    raise
