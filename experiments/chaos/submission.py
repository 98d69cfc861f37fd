"""Clients that submit until they are accepted, and waiting for what becomes of it."""

import random
import sys
import threading
import time
import uuid
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import httpx
from redis.exceptions import RedisError

from experiments.chaos.ledger import has_ended
from experiments.chaos.system import System
from experiments.waiting import outcome_of, until

#: Clients, and the mean of the seconds between two requests of one: a phase lasts some seconds.
NUM_CLIENTS, EVERY_S = 8, 0.25
#: Seconds between tries, and in which a submission must have been accepted: longer than any fault lasts.
AGAIN_S, ACCEPTED_S = 0.2, 90.0
#: Seconds that submitting all of a phase's requests may take.
SUBMITTED_S = 1800.0


def submit_all(system: System, prompts: Iterable[str], max_tokens: int = 12) -> list[str]:
    """Submit every prompt until it is accepted; the ids.

    Raises TimeoutError if one is not accepted within ACCEPTED_S, RuntimeError if one is refused.
    """
    given = iter(prompts)
    taking = threading.Lock()
    ids: list[str] = []

    def take() -> str | None:
        with taking:
            return next(given, None)

    def work(client: httpx.Client) -> None:
        for prompt in iter(take, None):
            ids.append(_submit(client, prompt, max_tokens))
            time.sleep(EVERY_S * random.random() * 2)

    with (
        httpx.Client(base_url=system.url, trust_env=False, timeout=10) as client,
        ThreadPoolExecutor(NUM_CLIENTS) as pool,
    ):
        for working in [pool.submit(work, client) for _ in range(NUM_CLIENTS)]:
            outcome_of(working, "every prompt is submitted", SUBMITTED_S)
    return ids


def _submit(client: httpx.Client, prompt: str, max_tokens: int) -> str:
    key = {"Idempotency-Key": uuid.uuid4().hex}
    deadline = time.monotonic() + ACCEPTED_S
    last = "nothing"
    while time.monotonic() < deadline:
        try:
            answer = client.post("/v1/jobs", json={"prompt": prompt, "max_tokens": max_tokens}, headers=key)
            last = answer.text
            if answer.status_code == httpx.codes.ACCEPTED:
                return str(answer.json()["id"])
            if answer.status_code < httpx.codes.INTERNAL_SERVER_ERROR:
                raise RuntimeError(f"refused: {last}")
        except httpx.TransportError as error:  # the gateway was killed; whether it had accepted, the key will tell
            last = repr(error)
        time.sleep(AGAIN_S)
    raise TimeoutError(f"not accepted within {ACCEPTED_S:g} s; the last answer was {last}")


def wait_for_all(system: System, ids: Iterable[str], within_s: float) -> None:
    """Wait until all have ended; what has not by then is told by the figures."""
    unfinished = set(ids)

    def all_ended() -> bool:
        try:
            ended = {one for one in unfinished if has_ended(system.redis, one)}
        except RedisError:
            return False
        unfinished.difference_update(ended)
        time.sleep(AGAIN_S)  # looking must not keep the cores from working
        return not unfinished

    try:
        until(all_ended, "all requests end", within_s)
    except TimeoutError:
        print(f"not ended: {sorted(unfinished)[:5]} and {len(unfinished)} in all", file=sys.stderr)
