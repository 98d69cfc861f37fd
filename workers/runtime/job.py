"""Runs the job of a request that a worker has taken: do the tier's work, conclude, commit.

The tier's part is its `Work`; this module knows neither tier's engine.
An error between taking a request and committing it fails that request at once, with the error as its reason. Otherwise
the lease would lapse, as if the worker had died.
"""

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Generic, Protocol, TypeVar

from redis.exceptions import RedisError

from broker.connection import is_away
from broker.leases import Lease, LeasedRequest
from broker.request_store import RequestStore, deadline_failure
from schemas.events import Started
from schemas.policy import Tier
from schemas.results import Failure, FailureKind
from workers.runtime.failures import EngineDied, RequestCancelled, RequestRefused
from workers.runtime.in_flight import InFlight

log = logging.getLogger(__name__)

ProductT = TypeVar("ProductT")

#: Seconds between tries to commit while Redis is away.
REDIS_RETRY_S = 0.5

#: Moves a request to its next state. Returns False if the lease was lost.
Commit = Callable[[], bool]


class Work(Protocol[ProductT]):
    """What one tier does with a request."""

    def submit(self, leased: LeasedRequest) -> "Future[ProductT]":
        """Submit the request to the engine."""

    def conclude(self, leased: LeasedRequest, product: ProductT, took_s: float) -> Commit:
        """Decide the request's next state, given the engine's product and the seconds that it took. Not using Redis."""

    def publish(self, leased: LeasedRequest, product: ProductT) -> None:
        """Report to the prefix index what the engine has read and written. Called after the commit."""


class JobRunner(Generic[ProductT]):
    """Runs one tier's jobs. `run_job` blocks until the request has been committed; any number of threads may call it.

    After a lapsed lease, two workers may work on the same request at once; the lease's fence lets only one commit.
    """

    def __init__(self, tier: Tier, store: RequestStore, in_flight: InFlight, work: Work[ProductT]) -> None:
        self._tier = tier
        self._store = store
        self._in_flight = in_flight
        self._work = work

    def run_job(self, leased: LeasedRequest, share: Callable[[], None]) -> None:
        """Work on a request that was taken and commit its next state. `share`: see `InFlight.track`."""
        lease, product = leased.lease, None
        with self._in_flight.track(lease, leased.remaining_s, share=None if leased.alone else share):
            self._in_flight.publish(lease, Started(tier=self._tier, worker=lease.worker_id, attempt=lease.attempt))
            try:
                product, took_s = self._result(leased)
                committed = self._persist(self._work.conclude(leased, product, took_s))
            except Exception as error:
                if isinstance(error, RedisError) and is_away(error):
                    raise  # the worker is stopping: the lease lapses
                kind = FailureKind.ENGINE_ERROR if product is None else FailureKind.INTERNAL_ERROR
                product = None
                committed = self._persist(self._end_of(lease, error, kind))
            if not committed:
                log.info("commit_came_too_late request_id=%s attempt=%s", lease.request_id, lease.attempt)
            elif product is not None:
                self._publish(leased, product)

    def _result(self, leased: LeasedRequest) -> tuple[ProductT, float]:
        """The engine's product and the seconds that it took. Blocks. Raises the engine's errors."""
        lease, began = leased.lease, time.monotonic()
        try:
            if self._in_flight.is_stopped(lease):  # its deadline has passed, or the worker is stopping
                raise RequestCancelled(lease.request_id)
            future = self._work.submit(leased)
            if self._in_flight.is_stopped(lease):  # stopped before the engine had it
                self._in_flight.stop(lease)
            return future.result(), time.monotonic() - began
        finally:
            self._in_flight.settle(lease)

    def _end_of(self, lease: Lease, error: Exception, kind: FailureKind) -> Commit:
        """The commit after an error: a failure of this kind, unless the type of the error means something else."""
        if isinstance(error, EngineDied):
            log.error("engine_died request_id=%s error=%s", lease.request_id, error)
            return partial(self._surrender, lease, f"its engine died: {error}")
        if isinstance(error, RequestRefused):
            return self._failure(lease, error.kind, str(error))
        if not isinstance(error, RequestCancelled):
            log.error("request_broke request_id=%s", lease.request_id, exc_info=error)
            return self._failure(lease, kind, f"{type(error).__name__}: {error}")
        # Cancelled in the engine: find out why.
        if (problem := self._in_flight.publishing_error(lease)) is not None:
            return self._failure(lease, FailureKind.INTERNAL_ERROR, f"its events could not be published: {problem!r}")
        if self._in_flight.is_late(lease):
            log.info("deadline_passed request_id=%s tier=%s", lease.request_id, lease.tier)
            return partial(self._store.fail, lease, deadline_failure(self._tier, "a worker had it"))
        log.info("request_handed_back request_id=%s tier=%s", lease.request_id, lease.tier)
        return partial(self._store.hand_back, lease)

    def _failure(self, lease: Lease, kind: FailureKind, message: str) -> Commit:
        log.info("request_failed request_id=%s kind=%s", lease.request_id, kind)
        # An error's text may be empty, or contain characters that UTF-8 cannot encode (half of a surrogate pair).
        encodable = message.encode(errors="backslashreplace").decode() or kind.value
        return partial(self._store.fail, lease, Failure(kind=kind, tier=self._tier, message=encodable))

    def _surrender(self, lease: Lease, reason: str) -> bool:
        self._store.surrender(lease, reason)
        return True

    def _publish(self, leased: LeasedRequest, product: ProductT) -> None:
        try:
            self._work.publish(leased, product)
        except Exception:  # the request has its answer already, and the index is only a hint
            log.exception("prefix_not_published request_id=%s", leased.lease.request_id)

    def _persist(self, commit: Commit) -> bool:
        """Commit, and retry while Redis is away, since the work is done already.

        Once the worker is stopping, Redis's error is raised. The lease then lapses, and another worker does the work.
        """
        while True:
            try:
                return commit()
            except RedisError as error:
                if not is_away(error):
                    raise
                log.warning("commit_waits error=%s", error)
                if self._in_flight.stopping.wait(REDIS_RETRY_S):
                    raise
