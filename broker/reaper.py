"""Looks after requests that nobody looks after: lapsed leases, lost jobs, passed deadlines.

Any number of processes may reap at any time: what is due is claimed, so that each request goes to one of them, and
every change is fenced like any other.
"""

import logging
from typing import cast

from redis import Redis
from redis.exceptions import ResponseError

from broker import keys, scripts, states
from broker.background import Loop
from broker.connection import REDIS_AWAY
from broker.leases import Lifetimes, read_attempt
from broker.request_store import WAITING_CHECK_S, RequestStore
from broker.rq_transport import JobQueues
from broker.states import State
from schemas import wire
from schemas.policy import Tier
from schemas.wire import UndecodableMessage

log = logging.getLogger(__name__)

#: Why an attempt was lost, as far as anyone but its worker can tell.
LAPSED = "its worker did not renew its lease: killed, hung or cut off"
#: Requests that are looked at in one go, of those in hand and of those that wait.
REAP_BATCH = 100
#: Seconds until another process looks after what one has claimed, should that one die over it.
CLAIM_S = 5.0
#: How often each process reaps, in leases: a lapsed one is noticed after a fifth of it at most.
LOOKS_PER_LEASE = 5


class Reaper:
    """Pushes again what was lost."""

    def __init__(self, redis: Redis, store: RequestStore, lifetimes: Lifetimes) -> None:
        self._redis = redis
        self._store = store
        self._queues = JobQueues(redis, lifetimes.unfinished_ttl_s)
        self._claim_due = redis.register_script(scripts.CLAIM_DUE)
        self._forget = redis.register_script(scripts.FORGET)
        #: Reaps again and again, once it is started.
        self.loop = Loop("reaper", self._look, every_s=lifetimes.lease_s / LOOKS_PER_LEASE)

    def reap(self) -> list[str]:
        """Look after everything that is due now. Answers the ids that were pushed again."""
        lapsed = self._due(keys.leases(), CLAIM_S)
        unchecked = self._due(keys.waiting(), WAITING_CHECK_S)
        return [request_id for request_id in [*lapsed, *unchecked] if self._is_pushed(request_id)]

    def _is_pushed(self, request_id: str) -> bool:
        """Look after the request. One whose record cannot be read keeps no other from being looked after."""
        try:
            return self._look_after(request_id)
        except REDIS_AWAY:
            raise
        except (UndecodableMessage, ResponseError) as error:
            log.error("record_unreadable request_id=%s error=%s", request_id, error)  # noqa: TRY400 - says it all
            return False

    def _due(self, times: str, claim_s: float) -> list[str]:
        return [raw.decode() for raw in self._claim_due(keys=[times], args=[claim_s, REAP_BATCH])]

    def _look_after(self, request_id: str) -> bool:
        fields = ("state", "attempt", "deadline_at")
        raw = cast("list[bytes | None]", self._redis.hmget(keys.request(request_id), *fields))
        with wire.reading("record", {name.encode(): value or b"" for name, value in zip(fields, raw, strict=True)}):
            state = None if raw[0] is None else State(raw[0].decode())
            attempt, deadline = read_attempt(raw[1] or b"0"), float(raw[2] or 0)
        if state is None or state in states.FINISHED:
            self._forget(keys=[keys.request(request_id), keys.events(request_id)], args=[request_id])
            return False
        tier = next(t for t in Tier if state in (states.WAITING[t], states.WORKING[t]))
        if state == states.WORKING[tier]:
            if not self._store.take_over(request_id, tier, attempt, LAPSED):
                return False
        elif self._now_s() >= deadline:
            self._store.expire(request_id, tier, attempt)
            return False
        elif self._queues.holds(request_id, tier, attempt):
            return False
        self._queues.push(request_id, tier, attempt)
        return True

    def _now_s(self) -> float:
        seconds, microseconds = self._redis.time()
        return float(seconds) + microseconds / 1e6

    def _look(self) -> None:
        for request_id in self.reap():
            log.info("request_pushed_again request_id=%s", request_id)
