"""Clients that submit each request until it is accepted, and waiting for the requests' ends."""

import random
import sys
import threading
import time
import uuid
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import httpx
from redis.exceptions import RedisError

from broker.states import FINISHED
from experiments.harness.system import System
from experiments.waiting import outcome_of, until

#: Client threads, and the mean of the seconds between two requests of one, so that a phase lasts some seconds.
NUM_CLIENTS, EVERY_S = 8, 0.25
#: Seconds between tries, and in which a request must have been accepted: longer than any fault lasts.
RETRY_S, ACCEPTED_S = 0.2, 90.0
#: Seconds that submitting all of a phase's requests may take.
SUBMITTED_S = 1800.0


def submit_all(system: System, prompts: Iterable[str], max_tokens: int) -> list[str]:
    """Submit every prompt until it is accepted; the ids of the requests.

    Raises TimeoutError if one is not accepted within ACCEPTED_S, RuntimeError if one is refused.
    """
    remaining = iter(prompts)
    lock = threading.Lock()
    ids: list[str] = []

    def next_prompt() -> str | None:
        with lock:
            return next(remaining, None)

    def submit_some(client: httpx.Client) -> None:
        for prompt in iter(next_prompt, None):
            ids.append(_submit(client, prompt, max_tokens))
            time.sleep(EVERY_S * random.random() * 2)

    with (
        httpx.Client(base_url=system.url, trust_env=False, timeout=10) as client,
        ThreadPoolExecutor(NUM_CLIENTS) as pool,
    ):
        for submitting in [pool.submit(submit_some, client) for _ in range(NUM_CLIENTS)]:
            outcome_of(submitting, "every prompt is submitted", SUBMITTED_S)
    return ids


def _submit(client: httpx.Client, prompt: str, max_tokens: int) -> str:
    key = {"Idempotency-Key": uuid.uuid4().hex}
    deadline = time.monotonic() + ACCEPTED_S
    last = "none"
    while time.monotonic() < deadline:
        try:
            answer = client.post("/v1/jobs", json={"prompt": prompt, "max_tokens": max_tokens}, headers=key)
            last = answer.text
            if answer.status_code == httpx.codes.ACCEPTED:
                return str(answer.json()["id"])
            if answer.status_code < httpx.codes.INTERNAL_SERVER_ERROR:
                raise RuntimeError(f"refused: {last}")
        except httpx.TransportError as error:  # a killed gateway may have accepted it, which the key will show
            last = repr(error)
        time.sleep(RETRY_S)
    raise TimeoutError(f"not accepted within {ACCEPTED_S:g} s; the last answer was {last}")


def wait_for_all(system: System, ids: Iterable[str], within_s: float) -> None:
    """Block until all requests have ended. Does not raise after `within_s`: the figures count what has not ended."""
    unfinished = set(ids)

    def all_ended() -> bool:
        try:
            unfinished.difference_update({each for each in unfinished if system.store.state(each) in FINISHED})
        except RedisError:
            return False
        return not unfinished

    try:
        until(all_ended, "all requests end", within_s, look_s=RETRY_S)
    except TimeoutError:
        print(f"not ended: {sorted(unfinished)[:5]} and {len(unfinished)} in all", file=sys.stderr)
