"""Output tokens per second of the cloud worker through gateway and queue, beside `LLM.generate` on the same prompts."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from config.environment import child_environment
from config.settings import Settings
from experiments.cloud_workload import QUESTIONS
from experiments.harness.edge import user_message
from experiments.harness.system import running_system
from experiments.waiting import ANSWER_S, END_S, end, killed_after
from firstdraft.client.sync import Client
from workers.runtime.model_paths import cloud_model_path

#: Requests that both engines process at once, and requests of a round.
IN_FLIGHT, NUM_REQUESTS = 32, 64
#: Seconds that `LLM.generate`'s engine may take to start, and that all rounds may take.
START_S, RUNS_S = 300.0, 3600.0


def token_rates(settings: Settings, max_tokens: int, rounds: int) -> dict[str, list[float]]:
    """Tokens per second of each side in each round."""
    rates: dict[str, list[float]] = {"queue": [], "generate": []}
    with _generator(settings) as generate, _queue() as through_queue:
        through_queue(4)
        generate(4)
        for round_number in range(rounds):
            for side in ("queue", "generate") if round_number % 2 == 0 else ("generate", "queue"):
                rates[side].append((generate if side == "generate" else through_queue)(max_tokens))
    return rates


def _prompts() -> list[str]:
    """Prompts of one round, all different."""
    return [f"{QUESTIONS[index % len(QUESTIONS)]} ({index})" for index in range(NUM_REQUESTS)]


@contextmanager
def _queue() -> Iterator[Callable[[int], float]]:
    """A function of the longest answer that runs a round through gateway, queue and one cloud worker."""
    environment = {"FIRSTDRAFT_REQUESTS__POLICY": "cloud_only", "FIRSTDRAFT_CLOUD__MAX_IN_FLIGHT": str(IN_FLIGHT)}
    with running_system(environment) as system, Client(system.url) as client:
        system.add_worker("cloud", "cloud", environment)
        system.wait_until_ready()

        def through_queue(max_tokens: int) -> float:
            began = time.perf_counter()
            ids = [client.submit(prompt, max_tokens=max_tokens).id for prompt in _prompts()]
            results = [client.result(job_id, ANSWER_S) for job_id in ids]
            return sum(result.usage.completion_tokens for result in results) / (time.perf_counter() - began)

        yield through_queue


@contextmanager
def _generator(settings: Settings) -> Iterator[Callable[[int], float]]:
    """A function of the longest answer that runs a round of `LLM.generate` in a process of its own."""
    command = [sys.executable, "-m", "experiments.plain_vllm", cloud_model_path(settings)]
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
            conversations = [[message.model_dump() for message in user_message(prompt)] for prompt in _prompts()]
            assert process.stdin
            process.stdin.write(json.dumps({"conversations": conversations, "max_tokens": max_tokens}) + "\n")
            process.stdin.flush()
            answer = read()
            return float(answer["tokens"] / answer["seconds"])

        read()  # it is ready
        yield generate
        process.stdin.close()  # which ends it
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            end(process)
