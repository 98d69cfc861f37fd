"""Real edge workers behind a gateway for the routing benchmark.

The time to first token is that between a request's first event in Redis and its first draft text, as a client sees it.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import httpx

from broker import keys
from broker.presence import LIFE_S
from broker.states import FINISHED, State
from experiments.harness.system import System, running_system
from experiments.routing_workload import Arrival
from experiments.waiting import until
from schemas.events import DraftText
from schemas.policy import Tier

#: Seconds in which all answers must have come after the last request.
ANSWER_S = 300.0
#: Seconds between checks for unfinished requests.
LOOK_S = 0.05


@dataclass(frozen=True)
class Answered:
    """One request that the cluster has answered."""

    worker: str
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    first_token_s: float


@dataclass(frozen=True)
class Cluster:
    """A gateway and edge workers. Made by `cluster`."""

    system: System
    client: httpx.Client

    def play(self, arrivals: Sequence[Arrival]) -> list[Answered]:
        """Send each request at its time and wait for all answers. Raises RuntimeError if a request fails."""
        began = time.monotonic()
        ids = []
        for arrival in arrivals:
            time.sleep(max(0.0, began + arrival.at_s - time.monotonic()))
            ids.append(self._send(arrival))
        unfinished = set(ids)

        def all_ended() -> bool:
            unfinished.difference_update({each for each in unfinished if self.system.store.state(each) in FINISHED})
            return not unfinished

        until(all_ended, "all requests are answered", ANSWER_S, look_s=LOOK_S)
        return [self._read(request_id) for request_id in ids]

    def num_routed_to_dead_worker(self, arrivals: Sequence[Arrival]) -> int:
        """Kill a worker, wait until it no longer counts as alive, and count requests that are still routed to it."""
        killed = self.system.workers()[0]
        assert killed.process is not None
        self.system.remove(killed.name)
        time.sleep(LIFE_S)
        num_routed = 0
        for arrival in arrivals:
            record = self.system.store.read(self._send(arrival))
            assert record is not None
            num_routed += f"-{killed.process.pid}@" in (record.routes[Tier.EDGE].worker or "")
        return num_routed

    def _send(self, arrival: Arrival) -> str:
        """Submit the request; its id."""
        body = {
            "messages": [message.model_dump() for message in arrival.messages],
            "max_tokens": arrival.max_tokens,
            "confidence": {"strategy": "max_prob"},
            "deadline_s": ANSWER_S,
        }
        return str(self.client.post("/v1/jobs", json=body).raise_for_status().json()["id"])

    def _read(self, request_id: str) -> Answered:
        record = self.system.store.read(request_id)
        if record is None or record.state is not State.SUCCEEDED or record.result is None:
            raise RuntimeError(f"request {request_id} was not answered: {record and record.failure}")
        worker = cast("bytes", self.system.redis.hget(keys.request(request_id), "worker")).decode()
        events = self.system.events(request_id)
        first_token_at_s = next(at_s for at_s, event in events if isinstance(event, DraftText))
        usage = record.result.usage
        return Answered(
            worker,
            usage.prompt_tokens,
            usage.edge_cached_tokens,
            usage.completion_tokens,
            first_token_at_s - events[0][0],
        )


@contextmanager
def cluster(num_workers: int, policy: str) -> Iterator[Cluster]:
    """Edge workers with one thread each, ready, under this routing policy."""
    environment = {"FIRSTDRAFT_ROUTING__POLICY": policy, "FIRSTDRAFT_REQUESTS__POLICY": "edge_only"}
    with running_system(environment) as system:
        for number in range(num_workers):
            system.add_worker(f"edge-{number}", "edge", environment | {"FIRSTDRAFT_EDGE__MODEL__THREADS": "1"})
        system.wait_until_ready()
        with httpx.Client(base_url=system.url, trust_env=False, timeout=ANSWER_S) as client:
            yield Cluster(system, client)
