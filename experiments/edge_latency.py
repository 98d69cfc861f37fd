"""What the edge engine's cache, scheduler and early escalation do, measured inside one engine each.

Each function runs on a fresh engine and returns plain figures; `experiments/bench_edge.py` takes medians of rounds.
"""

import statistics
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from itertools import count, pairwise
from pathlib import Path

import llama_cpp
import numpy as np

from config.settings import read_settings
from experiments.waiting import outcome_of, until
from schemas.drafts import Draft
from schemas.events import DraftText
from schemas.requests import ConfidenceRule, Message, Sampling
from workers.edge.engine import DraftOrder, EdgeEngine
from workers.edge.token_metrics import Meter

#: A system prompt of more than 400 tokens.
SHARED = "Follow policy number seven and answer in one line. " * 44
#: Turns of the conversation, and what each question adds.
NUM_TURNS = 6
QUESTION = "Tell me more about point {0}, please, and be as exact as you can about what it means in practice. " * 3
#: The vocabulary at which the figures' cost is stated, and rows measured.
LARGE_VOCABULARY, NUM_ROWS = 152_000, 200
#: Writers whose gaps are watched while a long prompt is read, and their tokens.
NUM_WRITERS, WRITER_TOKENS = 4, 160
#: Seconds that the first quarter of the writers' tokens may take.
QUARTER_S = 120.0
#: The bias of a token that is never written.
NEVER = -100.0

_ids = count()


@contextmanager
def running(model: Path, threads: int) -> Iterator[EdgeEngine]:
    """An engine with the product's own settings."""
    engine = EdgeEngine(read_settings(edge={"model": {"threads": threads}}).edge, model)
    engine.start()
    try:
        yield engine
    finally:
        engine.close()


def ttft_shared_prefix(model: Path, threads: int, *, use_cache: bool) -> float:
    """Median seconds to the first token of requests that share a system prompt."""
    with running(model, threads) as engine:
        asked = [_conversation(SHARED, f"What is {number} + 5?") for number in range(5)]
        _first_token_s(engine, asked[0], use_cache=use_cache)
        return statistics.median(_first_token_s(engine, messages, use_cache=use_cache) for messages in asked[1:])


def ttft_conversation(model: Path, threads: int, *, use_cache: bool) -> float:
    """Seconds to the first token of a conversation's last turn, each turn having been answered by this engine."""
    with running(model, threads) as engine:
        messages = [Message(role="system", content="You are an exact and patient teacher.")]
        for turn in range(NUM_TURNS - 1):
            messages.append(Message(role="user", content=QUESTION.format(turn)))
            draft = outcome_of(submit(engine, tuple(messages), 32, use_cache=use_cache), "a turn is answered")
            messages.append(Message(role="assistant", content=draft.text.strip() or "Yes."))
        messages.append(Message(role="user", content=QUESTION.format(NUM_TURNS)))
        return _first_token_s(engine, tuple(messages), use_cache=use_cache)


def p99_gap_s(model: Path, threads: int, *, long_prompt: bool) -> float:
    """99th percentile of the seconds between tokens of several writers, with or without a 1,500-token prompt beside.

    The writers do not stop where the model would: how soon that is differs from one kind of processor to another.
    """
    endless = dict.fromkeys(end_of_text_tokens(model), NEVER)
    with running(model, threads) as engine:
        times: list[list[float]] = [[] for _ in range(NUM_WRITERS)]
        writing = [
            submit(
                engine,
                _conversation("", f"{number}. Tell a long story."),
                WRITER_TOKENS,
                written=times[number],
                logit_bias=endless,
            )
            for number in range(NUM_WRITERS)
        ]
        until(
            lambda: min(len(written) for written in times) >= WRITER_TOKENS // 4 or any(one.done() for one in writing),
            f"each of {NUM_WRITERS} writers has written a quarter of its tokens",
            QUARTER_S,
            look_s=0.002,
        )
        if long_prompt:
            outcome_of(submit(engine, _conversation("", "tea " * 1500), 1, use_cache=False), "the long prompt is read")
        for future in writing:
            draft = outcome_of(future, "a writer has written all its tokens")
            if len(draft.token_ids) < WRITER_TOKENS:
                raise RuntimeError(f"a writer ended after {len(draft.token_ids)} of {WRITER_TOKENS} tokens")
        gaps = sorted(after - before for written in times for before, after in pairwise(written))
        return gaps[int(0.99 * len(gaps))]


def end_of_text_tokens(model: Path) -> list[int]:
    """The tokens with which the model ends a text."""
    loaded = llama_cpp.Llama(str(model), vocab_only=True, verbose=False)
    try:
        vocabulary = llama_cpp.llama_model_get_vocab(loaded.model)
        return [token for token in range(loaded.n_vocab()) if llama_cpp.llama_vocab_is_eog(vocabulary, token)]
    finally:
        loaded.close()


def early_escalation_saving(model: Path, threads: int, prompts: list[str]) -> dict[str, float]:
    """Share of the edge's seconds that giving doubtful drafts up early saves, at the configured threshold."""
    took = {}
    with running(model, threads) as engine:
        for early in (False, True):
            began = time.perf_counter()
            drafts = [
                outcome_of(submit(engine, _conversation("", p), 96, use_cache=False, early=early), "a draft is written")
                for p in prompts
            ]
            took[early] = time.perf_counter() - began
    given_up = sum(draft.escalated_early for draft in drafts)
    return {"early_saved_share": 1 - took[True] / took[False], "early_given_up_share": given_up / len(prompts)}


def figures_ms_per_token() -> float:
    """Median milliseconds that all figures of one token take at a large vocabulary."""
    settings = read_settings().edge.confidence
    meter = Meter(LARGE_VOCABULARY, temperature=settings.temperature, top_k=settings.top_k)
    rows = np.random.default_rng(7).normal(0.0, 3.0, (8, LARGE_VOCABULARY)).astype(np.float32)
    took = []
    for number in range(NUM_ROWS):
        row = rows[number % len(rows)]
        began = time.perf_counter()
        meter.measure(row, 17)
        took.append((time.perf_counter() - began) * 1000)
    return statistics.median(took)


def _conversation(system: str, user: str) -> tuple[Message, ...]:
    asked = Message(role="user", content=user)
    return (Message(role="system", content=system), asked) if system else (asked,)


def _first_token_s(engine: EdgeEngine, messages: tuple[Message, ...], *, use_cache: bool) -> float:
    began = time.perf_counter()
    outcome_of(submit(engine, messages, 1, use_cache=use_cache), "a first token is written")
    return time.perf_counter() - began


def submit(
    engine: EdgeEngine,
    messages: tuple[Message, ...],
    max_tokens: int,
    *,
    use_cache: bool = True,
    early: bool = False,
    written: list[float] | None = None,
    logit_bias: Mapping[int, float] | None = None,
) -> Future[Draft]:
    """One greedy request. `written`: gets the time of each piece of text, in seconds."""
    confidence = read_settings().edge.confidence
    order = DraftOrder(
        request_id=f"request-{next(_ids)}",
        messages=messages,
        sampling=Sampling(max_tokens=max_tokens, logit_bias=dict(logit_bias or {})),
        rule=ConfidenceRule(threshold=confidence.threshold, weights=confidence.weights),
        use_cache=use_cache,
        cache_namespace="experiment",
        may_escalate_early=early,
    )

    def note(_text: DraftText) -> None:
        if written is not None:
            written.append(time.perf_counter())

    return engine.submit(order, note)
