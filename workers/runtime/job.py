"""What every tier's job does with a request that a worker has taken: the tier's work, one commit, whatever goes wrong.

A tier's own part is its `Work`; this module knows neither tier's engine.
Whatever goes wrong for one request between taking it and its commit fails that request, at once and with its reason: no
exception leaves it to its lease, which others would see as a worker that died.
"""

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, Protocol, TypeVar

from broker.connection import REDIS_AWAY
from broker.leases import Lease, LeasedRequest
from broker.request_store import RequestStore, deadline_failure
from schemas.events import Started
from schemas.policy import Tier
from schemas.results import Failure, FailureKind
from workers.runtime.failures import EngineDied, RequestCancelled, RequestRefused
from workers.runtime.in_flight import InFlight

log = logging.getLogger(__name__)

ProductT = TypeVar("ProductT")
CommittedT = TypeVar("CommittedT")

#: Seconds between tries to commit while Redis is away.
REDIS_RETRY_S = 0.5


class Work(Protocol[ProductT]):
    """What one tier does with a request."""

    def submit(self, leased: LeasedRequest) -> "Future[ProductT]":
        """Hand the request to the engine."""

    def conclude(self, leased: LeasedRequest, product: ProductT, took_s: float) -> bool:
        """Commit what came of it after so many seconds. Returns whether the lease still stood.

        May be called again where Redis was away.
        """

    def publish(self, leased: LeasedRequest, product: ProductT) -> None:
        """Tell others what the engine has read and written. Called after the commit; no request waits for it."""


class JobRunner(Generic[ProductT]):
    """Runs one tier's jobs. `run_job` blocks until the request has been committed; any number of threads may call it.

    A request may be worked on twice at once, here and elsewhere: whoever commits first is right.
    """

    def __init__(self, tier: Tier, store: RequestStore, in_flight: InFlight, work: Work[ProductT]) -> None:
        self._tier = tier
        self._store = store
        self._in_flight = in_flight
        self._tiers_work = work

    def run_job(self, leased: LeasedRequest, share: Callable[[], None]) -> None:
        """Work on the request and commit what came of it. `share` lets others use the engine beside it."""
        lease = leased.lease
        with self._in_flight.holding(lease, leased.remaining_s, end_sole_use=None if leased.alone else share):
            self._in_flight.say(lease, Started(tier=self._tier, worker=lease.worker_id, attempt=lease.attempt))
            began = time.monotonic()
            try:
                product = self._work(leased)
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
                self._conclude(leased, product, time.monotonic() - began)

    def _work(self, leased: LeasedRequest) -> ProductT:
        """What the engine makes of the request. Raises what the engine does; blocks."""
        lease = leased.lease
        if self._in_flight.is_unwanted(lease):  # its deadline has passed, or the worker is stopping
            raise RequestCancelled(lease.request_id)
        future = self._tiers_work.submit(leased)
        if self._in_flight.is_unwanted(lease):  # told to stop before the engine knew of it
            self._in_flight.stop(lease)
        return future.result()

    def _conclude(self, leased: LeasedRequest, product: ProductT, took_s: float) -> None:
        """Commit what came of the request, then tell others of it."""
        lease = leased.lease
        try:
            committed = self._commit(lease, lambda: self._tiers_work.conclude(leased, product, took_s))
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
            self._tiers_work.publish(leased, product)
        except Exception:  # the request has its answer; what is published is a hint to others
            log.exception("prefix_not_published request_id=%s", lease.request_id)

    def _let_go(self, lease: Lease) -> None:
        """The engine was stopped: the deadline has passed, the worker is stopping, or the lease is lost already."""
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
