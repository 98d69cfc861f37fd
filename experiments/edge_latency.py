"""Latencies of the edge engine's cache, scheduler and early escalation, each measured on a fresh engine.

The functions return plain figures, of which `experiments/bench_edge.py` takes medians over rounds.
"""

import statistics
import time
from itertools import pairwise
from pathlib import Path

import llama_cpp
import numpy as np

from config.settings import read_settings
from experiments.harness.edge import running_edge, submit, user_message
from experiments.waiting import outcome_of, until
from schemas.requests import Message
from workers.edge.engine import EdgeEngine
from workers.edge.token_metrics import Meter

#: A system prompt of more than 400 tokens.
SHARED = "Follow policy number seven and answer in one line. " * 44
#: Turns of the conversation, and the text of each question.
NUM_TURNS = 6
QUESTION = "Tell me more about point {0}, please, and be as exact as you can about what it means in practice. " * 3
#: Size of the vocabulary for which the cost of token figures is measured, and rows of logits measured.
LARGE_VOCABULARY, NUM_ROWS = 152_000, 200
#: Requests whose inter-token gaps are measured while a long prompt is prefilled, and their tokens.
NUM_REQUESTS, NUM_TOKENS = 4, 160
#: Seconds that the first quarter of their tokens may take.
QUARTER_S = 120.0
#: The logit bias of a token that must not be sampled.
NEVER = -100.0


def ttft_shared_prefix(model: Path, threads: int, *, use_cache: bool) -> float:
    """Median seconds to the first token of requests that share a system prompt."""
    with running_edge(model, model={"threads": threads}) as engine:
        shared = Message(role="system", content=SHARED)
        prompts = [(shared, *user_message(f"What is {number} + 5?")) for number in range(5)]
        _first_token_s(engine, prompts[0], use_cache=use_cache)
        return statistics.median(_first_token_s(engine, messages, use_cache=use_cache) for messages in prompts[1:])


def ttft_conversation(model: Path, threads: int, *, use_cache: bool) -> float:
    """Seconds to the first token of a conversation's last turn, each turn having been answered by this engine."""
    with running_edge(model, model={"threads": threads}) as engine:
        messages = [Message(role="system", content="You are an exact and patient teacher.")]
        for turn in range(NUM_TURNS - 1):
            messages.append(Message(role="user", content=QUESTION.format(turn)))
            draft = outcome_of(submit(engine, tuple(messages), 32, use_cache=use_cache), "a turn is answered")
            messages.append(Message(role="assistant", content=draft.text.strip() or "Yes."))
        messages.append(Message(role="user", content=QUESTION.format(NUM_TURNS)))
        return _first_token_s(engine, tuple(messages), use_cache=use_cache)


def p99_gap_s(model: Path, threads: int, *, long_prompt: bool) -> float:
    """99th percentile of the seconds between tokens of several requests, with or without a 1,500-token prompt beside.

    The end-of-text tokens are banned, since where a model ends its answer depends on the processor's arithmetic.
    """
    endless = dict.fromkeys(end_of_text_tokens(model), NEVER)
    with running_edge(model, model={"threads": threads}) as engine:
        times: list[list[float]] = [[] for _ in range(NUM_REQUESTS)]
        futures = [
            submit(
                engine,
                user_message(f"{number}. Tell a long story."),
                NUM_TOKENS,
                logit_bias=endless,
                listener=lambda _text, token_times=times[number]: token_times.append(time.perf_counter()),  # type: ignore[misc]
            )
            for number in range(NUM_REQUESTS)
        ]
        until(
            lambda: min(map(len, times)) >= NUM_TOKENS // 4 or any(future.done() for future in futures),
            f"each of {NUM_REQUESTS} requests has a quarter of its tokens",
            QUARTER_S,
            look_s=0.002,
        )
        if long_prompt:
            outcome_of(submit(engine, user_message("tea " * 1500), 1, use_cache=False), "the long prompt is prefilled")
        for future in futures:
            draft = outcome_of(future, "a request has all its tokens")
            if len(draft.token_ids) < NUM_TOKENS:
                raise RuntimeError(f"a request ended after {len(draft.token_ids)} of {NUM_TOKENS} tokens")
        gaps = sorted(after - before for token_times in times for before, after in pairwise(token_times))
        return gaps[int(0.99 * len(gaps))]


def end_of_text_tokens(model: Path) -> list[int]:
    """The model's end-of-generation tokens."""
    loaded = llama_cpp.Llama(str(model), vocab_only=True, verbose=False)
    try:
        vocabulary = llama_cpp.llama_model_get_vocab(loaded.model)
        return [token for token in range(loaded.n_vocab()) if llama_cpp.llama_vocab_is_eog(vocabulary, token)]
    finally:
        loaded.close()


def early_escalation_saving(model: Path, threads: int, prompts: list[str]) -> dict[str, float]:
    """The share of seconds that early escalation saves at the configured threshold, and of drafts escalated early."""
    took = {}
    with running_edge(model, model={"threads": threads}) as engine:
        for early in (False, True):
            began = time.perf_counter()
            drafts = [
                outcome_of(submit(engine, user_message(prompt), 96, use_cache=False, escalates_early=early), "a draft")
                for prompt in prompts
            ]
            took[early] = time.perf_counter() - began
    num_early = sum(draft.escalated_early for draft in drafts)
    return {"early_saved_share": 1 - took[True] / took[False], "early_given_up_share": num_early / len(prompts)}


def figures_ms_per_token() -> float:
    """Median milliseconds to compute all confidence figures of one token with a large vocabulary."""
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


def _first_token_s(engine: EdgeEngine, messages: tuple[Message, ...], *, use_cache: bool) -> float:
    began = time.perf_counter()
    outcome_of(submit(engine, messages, 1, use_cache=use_cache), "a first token is written")
    return time.perf_counter() - began
