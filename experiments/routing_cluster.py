"""Real edge workers on one Redis for the routing benchmark: started, asked as the gateway asks, killed, and read out.

A first token's time is that of its event in Redis, as a client would see it, after that of the request's first event.
"""

import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from redis import Redis

from broker import keys
from broker.connection import connect
from broker.leases import Lifetimes
from broker.presence import Presence
from broker.request_store import RequestStore
from broker.router import Router
from broker.run_queues import QUEUE_LEASE_S
from broker.states import FINISHED, State
from config.environment import child_environment
from config.settings import read_settings
from experiments.routing_workload import Ask
from experiments.waiting import END_S, end
from firstdraft.local.embedded import embedded_server
from schemas.policy import Policy, Tier
from schemas.requests import AcceptanceRule, AcceptedRequest, ConfidenceRule, Sampling

#: Seconds that workers may take to start, and that all answers may take after the last request.
START_S, ANSWER_S = 60.0, 300.0
#: Seconds between looks at what is not finished.
LOOK_S = 0.05
POLICY = Policy(name="edge_only", tiers=(Tier.EDGE,), confidence_decides=False, verify_draft=False, kv_caches=True)


@dataclass(frozen=True)
class Answered:
    """One request that the cluster has answered."""

    worker: str
    prompt_tokens: int
    cached_tokens: int
    written_tokens: int
    first_token_s: float


@dataclass(frozen=True)
class Cluster:
    """Workers that run, and the router that sends requests to them."""

    redis: Redis
    store: RequestStore
    router: Router
    workers: Sequence["subprocess.Popen[bytes]"]

    def play(self, asks: Sequence[Ask]) -> list[Answered]:
        """Send the traffic at its times and wait for all answers. Raises RuntimeError if one fails."""
        began = time.monotonic()
        ids = []
        for ask in asks:
            time.sleep(max(0.0, began + ask.at_s - time.monotonic()))
            ids.append(self.send(ask))
        deadline = time.monotonic() + ANSWER_S
        unfinished = list(ids)
        while unfinished:
            unfinished = [one for one in unfinished if self.store.state(one) not in FINISHED]
            if time.monotonic() > deadline:
                raise RuntimeError(f"{len(unfinished)} requests are not answered after {ANSWER_S:g} s")
            time.sleep(LOOK_S)
        return [self._read(request_id) for request_id in ids]

    def send(self, ask: Ask) -> str:
        """Route and store one request, as the gateway does; its id."""
        request = AcceptedRequest(
            request_id=uuid.uuid4().hex,
            messages=ask.messages,
            sampling=Sampling(max_tokens=ask.max_tokens),
            policy=POLICY,
            confidence=ConfidenceRule(strategy="max_prob"),
            acceptance=AcceptanceRule(),
            accepted_at_s=time.time(),
            deadline_s=ANSWER_S,
        )
        self.store.create(request, route=self.router.route(request, Tier.EDGE))
        return request.request_id

    def dead_routes(self, asks: Sequence[Ask]) -> int:
        """Kill a worker, and of the requests sent after its queue's lease, how many were routed to it."""
        killed = self.workers[0]
        killed.kill()
        killed.wait(END_S)
        time.sleep(QUEUE_LEASE_S)
        name = f"-{killed.pid}@"
        routed = 0
        for ask in asks:
            record = self.store.read(self.send(ask))
            assert record is not None
            routed += name in (record.routes[Tier.EDGE].worker or "")
        return routed

    def _read(self, request_id: str) -> Answered:
        record = self.store.read(request_id)
        if record is None or record.state is not State.SUCCEEDED or record.result is None:
            raise RuntimeError(f"request {request_id} was not answered: {record and record.failure}")
        worker = cast("bytes", self.redis.hget(keys.request(request_id), "worker")).decode()
        events = cast("list[tuple[bytes, dict[bytes, bytes]]]", self.redis.xrange(keys.events(request_id)))
        came, *_ = (_at_s(event_id) for event_id, _ in events)
        first = next(_at_s(event_id) for event_id, fields in events if b"draft" in fields[b"event"][:16])
        usage = record.result.usage
        return Answered(worker, usage.prompt_tokens, usage.edge_cached_tokens, usage.completion_tokens, first - came)


def _at_s(event_id: bytes) -> float:
    return int(event_id.split(b"-")[0]) / 1000


@contextmanager
def cluster(num_workers: int, policy: str) -> Iterator[Cluster]:
    """So many edge workers with a thread each, on a Redis server of their own, under this routing policy."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url = stack.enter_context(embedded_server(folder))
        log = stack.enter_context((folder / "workers.log").open("wb"))
        workers = []
        for _ in range(num_workers):
            command = [sys.executable, "-m", "workers.edge"]
            environment = child_environment(REDIS_URL=url, FIRSTDRAFT_EDGE__MODEL__THREADS="1")
            worker = subprocess.Popen(command, env=environment, stdout=log, stderr=log)  # noqa: S603 - our own
            stack.callback(end, worker)
            workers.append(worker)
        settings = read_settings(redis={"url": url}, routing={"policy": policy})
        redis = connect(url)
        stack.callback(redis.close)
        presence = Presence(redis, settings.requests.lease_s)
        deadline = time.monotonic() + START_S
        while sum(report.ready for report in presence.live()) < num_workers:
            if time.monotonic() > deadline or any(worker.poll() is not None for worker in workers):
                said = (folder / "workers.log").read_text(encoding="utf-8", errors="replace")
                raise RuntimeError(f"the workers did not start: {said[-2000:]}")
            time.sleep(0.1)
        store = RequestStore(redis, Lifetimes.configured(settings.requests))
        yield Cluster(redis, store, Router.configured(settings, redis, presence), workers)
