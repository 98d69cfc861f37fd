"""Output tokens per second of the cloud worker through the queue, beside `LLM.generate` on the same prompts."""

import json
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from redis import Redis

from broker.connection import connect
from broker.leases import Lifetimes
from broker.presence import Presence
from broker.request_store import RequestStore
from broker.states import FINISHED
from config.environment import child_environment
from config.settings import Settings
from experiments.cloud_workload import QUESTIONS, conversation
from experiments.waiting import ANSWER_S, END_S, end, killed_after, until
from firstdraft.local.embedded import embedded_server
from schemas.policy import Policy, Tier
from schemas.requests import AcceptanceRule, AcceptedRequest, ConfidenceRule, Sampling
from workers.runtime.model_paths import cloud_model_path

#: Jobs in flight, which is what both engines take at once, and jobs a round.
IN_FLIGHT, NUM_JOBS = 32, 64
#: Seconds that an engine may take to start.
START_S = 300.0
#: Seconds that all rounds may take.
RUNS_S = 3600.0
#: Seconds between looks at what is done.
POLL_S = 0.1
LIFETIMES = Lifetimes(result_ttl_s=600, lease_s=10.0, max_attempts=3)
POLICY = Policy(name="cloud_only", tiers=(Tier.CLOUD,), confidence_decides=False, verify_draft=False, kv_caches=True)


def rates(settings: Settings, max_tokens: int, rounds: int) -> dict[str, list[float]]:
    """Tokens per second of each side in each round."""
    took: dict[str, list[float]] = {"queue": [], "generate": []}
    with tempfile.TemporaryDirectory() as folder, embedded_server(Path(folder)) as url:
        redis = connect(url)
        with _generator(settings) as generate, _worker(redis, url):
            _through_the_queue(redis, 4)
            generate(4)
            for round_number in range(rounds):
                for side in ("queue", "generate") if round_number % 2 == 0 else ("generate", "queue"):
                    run = generate if side == "generate" else partial(_through_the_queue, redis)
                    took[side].append(run(max_tokens))
    return took


def _questions() -> list[str]:
    """As many prompts as jobs, no two alike."""
    return [f"{QUESTIONS[index % len(QUESTIONS)]} ({index})" for index in range(NUM_JOBS)]


def _through_the_queue(redis: Redis, max_tokens: int) -> float:
    store = RequestStore(redis, LIFETIMES)
    requests = [
        AcceptedRequest(
            request_id=uuid.uuid4().hex,
            messages=conversation(question),
            sampling=Sampling(max_tokens=max_tokens),
            policy=POLICY,
            confidence=ConfidenceRule(),
            acceptance=AcceptanceRule(),
            accepted_at_s=time.time(),
            deadline_s=3600.0,
        )
        for question in _questions()
    ]
    began = time.perf_counter()
    for request in requests:
        store.create(request)
    for request in requests:
        until(lambda one=request: store.state(one.request_id) in FINISHED, "every job ends", ANSWER_S, look_s=POLL_S)  # type: ignore[misc]
    seconds = time.perf_counter() - began
    records = [store.read(request.request_id) for request in requests]
    results = [record.result for record in records if record and record.result]
    if len(results) < len(requests):
        raise RuntimeError(f"{len(requests) - len(results)} of {len(requests)} jobs failed: see the worker's log")
    return sum(result.usage.completion_tokens for result in results) / seconds


@contextmanager
def _worker(redis: Redis, url: str) -> Iterator[None]:
    """A cloud worker on this server, ready."""
    command = [sys.executable, "-m", "workers.cloud"]
    environment = child_environment(REDIS_URL=url, FIRSTDRAFT_CLOUD__MAX_IN_FLIGHT=str(IN_FLIGHT))
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:  # noqa: S603 - our own
        try:
            presence = Presence(redis, LIFETIMES.lease_s)

            def is_ready() -> bool:
                if process.poll() is not None:
                    raise RuntimeError(f"the cloud worker ended with {process.returncode}")
                return any(report.ready for report in presence.live())

            until(is_ready, "the cloud worker is ready", START_S, look_s=1.0)
            yield
        finally:
            end(process)


@contextmanager
def _generator(settings: Settings) -> Iterator[Callable[[int], float]]:
    """`LLM.generate` in a process of its own."""
    model = cloud_model_path(settings)
    command = [sys.executable, "-m", "experiments.plain_vllm", model]
    environment = child_environment(FIRSTDRAFT_CLOUD__MAX_IN_FLIGHT=str(IN_FLIGHT))
    pipe = subprocess.PIPE
    with (
        subprocess.Popen(  # noqa: S603 - our own command
            command, env=environment, stdin=pipe, stdout=pipe, encoding="utf-8", start_new_session=True
        ) as process,
        killed_after(process, START_S + RUNS_S, "`LLM.generate` has answered in every round"),
    ):
        assert process.stdin
        assert process.stdout
        lines = iter(process.stdout)

        def read() -> dict[str, Any]:
            # vLLM writes to the standard output as well.
            found: dict[str, Any] = next(json.loads(line) for line in lines if line.startswith("{"))
            return found

        def generate(max_tokens: int) -> float:
            turns = [[message.model_dump() for message in conversation(question)] for question in _questions()]
            assert process.stdin
            process.stdin.write(json.dumps({"conversations": turns, "max_tokens": max_tokens}) + "\n")
            process.stdin.flush()
            answer = read()
            return float(answer["tokens"] / answer["seconds"])

        read()
        yield generate
        process.stdin.close()  # which ends it
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            end(process)
