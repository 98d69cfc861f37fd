"""Answers of each tier alone to many prompts, kept by content in a file, so that none is computed twice.

A line of the file is one answer as JSON, with the SHA-256 of what it depends on: tier, model, request. A line that was
not written completely is ignored, and computed again.
"""

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from firstdraft.client.errors import FirstdraftError
from firstdraft.client.sync import Client

#: A request's answer: text, tokens, seconds, parts (the confidence's members), logprobs of the first token.
Answer = dict[str, Any]


class AnswerFile:
    """Keeps answers by key, in memory and in a file. Safe on any thread."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._answers: dict[str, Answer] = {}
        torn = False
        if path.exists():
            with path.open("rb") as lines:
                for line in lines:
                    torn = not line.endswith(b"\n")
                    try:
                        entry = json.loads(line)
                        self._answers[entry["key"]] = entry["answer"]
                    except (ValueError, KeyError, TypeError):
                        continue
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab")
        if torn:
            self._file.write(b"\n")

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: str) -> Answer | None:
        """The answer, if it is there."""
        with self._lock:
            return self._answers.get(key)

    def add(self, key: str, answer: Answer) -> None:
        """Keep an answer; it is in the file when this returns."""
        with self._lock:
            self._answers[key] = answer
            self._file.write(json.dumps({"key": key, "answer": answer}).encode() + b"\n")
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        os.fsync(self._file.fileno())
        self._file.close()


def key_of(model: str, body: Mapping[str, Any]) -> str:
    """What an answer depends on: the model that alone writes it, and the request."""
    return hashlib.sha256(json.dumps([model, body], sort_keys=True).encode()).hexdigest()


def collect(
    client: Client, kept: AnswerFile, model: str, bodies: Sequence[Mapping[str, Any]], concurrency: int
) -> Iterator[tuple[int, Answer | FirstdraftError]]:
    """Each request's index with its answer or its error, as they come: those that are kept already at once.

    Blocks between them. A generator that is closed lets the requests in flight end.
    """
    missing = []
    for index, body in enumerate(bodies):
        answer = kept.get(key_of(model, body))
        if answer is None:
            missing.append(index)
        else:
            yield index, answer

    def ask(index: int) -> tuple[int, Answer | FirstdraftError]:
        try:
            answer = _ask(client, bodies[index])
        except FirstdraftError as error:
            return index, error
        kept.add(key_of(model, bodies[index]), answer)
        return index, answer

    with ThreadPoolExecutor(concurrency) as pool:
        running: set[Future[tuple[int, Answer | FirstdraftError]]] = set()
        pending = iter(missing)
        try:
            while True:
                while len(running) < concurrency and (following := next(pending, None)) is not None:
                    running.add(pool.submit(ask, following))
                if not running:
                    return
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for each in done:
                    yield each.result()
        finally:
            for each in running:
                each.cancel()


def _ask(client: Client, body: Mapping[str, Any]) -> Answer:
    options = dict(body)
    prompt, messages = options.pop("prompt", None), options.pop("messages", None)
    result = client.infer(messages if prompt is None else prompt, **options).result
    timings = result.timings
    return {
        "text": result.text,
        "tokens": result.usage.completion_tokens,
        "seconds": (timings.drafting_ms + timings.verifying_ms) / 1000,
        "parts": dict(result.confidence.parts) if result.confidence else {},
        "first": [[rival.token, rival.logprob] for rival in (result.logprobs[0].top if result.logprobs else ())],
    }


def progressing(
    answers: Iterator[tuple[int, Answer | FirstdraftError]], advance: Callable[[], None]
) -> Iterator[tuple[int, Answer | FirstdraftError]]:
    """The same, telling a progress bar of each."""
    for each in answers:
        advance()
        yield each
