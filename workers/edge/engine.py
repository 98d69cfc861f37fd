"""The edge engine: many requests in one llama.cpp batch, joining and leaving at any step.

Owns the one thread that steps llama.cpp, and everything it touches. What to do next is decided by `scheduler`,
`pacing` and `prefix_cache`; this shell performs it. Knows no queue, no Redis and no policy.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Self

from config.settings import EdgeSettings
from schemas.drafts import Draft
from schemas.events import DraftText
from schemas.requests import Message
from schemas.workers import CacheStatistics
from workers.edge.edge_sequence import DraftOrder, EdgeSequence
from workers.edge.llama import Capacity, Llama, Logits, UnusableModel
from workers.edge.prefill_budget import PrefillBudget
from workers.edge.prefix_cache import PrefixCache
from workers.edge.prefix_offload import OffloadedPrefixes
from workers.edge.prefix_store import PrefixStore
from workers.edge.prompt_preparation import Admission
from workers.edge.scheduler import Scheduler, Share
from workers.edge.step_protocol import CellsExhausted, Feed
from workers.edge.token_writer import Writer
from workers.runtime.failures import EngineDied, RequestCancelled, RequestRefused
from workers.runtime.vocabulary import fingerprint

__all__ = ["DraftOrder", "EdgeEngine", "UnusableModel"]

log = logging.getLogger(__name__)

#: Cells kept free for each running request when another is admitted, so that it is not preempted at once.
HEADROOM_TOKENS = 16


class EdgeEngine:
    """See `Engine`: one model on one thread. Raises `UnusableModel` if the file cannot serve."""

    engine_name = "llama.cpp"

    def __init__(self, settings: EdgeSettings, model_path: Path) -> None:
        self._settings = settings
        self._model = Llama(model_path, _capacity(settings))
        cells = self._model.cells
        self._parked = OffloadedPrefixes(settings.kv_cache.max_size)
        self.model_name = self._model.name
        self.vocabulary = fingerprint(self._model.token_texts())
        self.context_tokens = min(settings.model.context_tokens, self._model.trained_context, cells)
        self._admission = Admission(self._model, self.context_tokens, settings.early_escalation)
        self._cache = PrefixCache(
            self._model,
            self._parked,
            num_cells=cells,
            num_sequences=self._model.capacity.sequences,
            enabled=settings.kv_cache.enabled and self._model.shares_prefixes,
        )
        self._scheduler: Scheduler[EdgeSequence] = Scheduler(
            slots=settings.max_in_flight, step_tokens=settings.step_tokens
        )
        self._pacing = PrefillBudget(in_tiles=settings.model.gpu_layers == 0)
        self._writer = Writer(self._model, settings.confidence)
        self._store = _store(settings, self._model)
        if self._store is not None:
            self._store.load(self._parked)
        self._thread = threading.Thread(target=self._run, name="edge-engine", daemon=True)
        self._changed = threading.Condition()
        self._sequences: dict[str, EdgeSequence] = {}
        self._arrived: list[EdgeSequence] = []
        self._cancelled: set[str] = set()
        self._num_arrivals = 0
        #: Callers of `submit` that are reading the vocabulary: it must not be freed under them.
        self._num_preparing = 0
        self._closing = False
        self._died: BaseException | None = None

    # Any thread

    def start(self) -> None:
        """Start the thread that steps llama.cpp. Call it once."""
        self._thread.start()

    def submit(self, order: DraftOrder, listener: Callable[[DraftText], None] | None = None) -> Future[Draft]:
        """Ask for a draft; blocks only to tokenize the prompt.

        `listener` is called on the engine's thread with each new piece of text and must not block. The future fails
        with `RequestRefused`, `RequestCancelled` or `EngineDied`. Raises `ValueError` if the id is in flight already.
        """
        future: Future[Draft] = Future()
        future.set_running_or_notify_cancel()
        with self._changed:
            if self._closing or self._died is not None:
                future.set_exception(EngineDied(f"the edge engine no longer runs: {self._died or 'it was closed'}"))
                return future
            self._num_preparing += 1
            arrival = self._num_arrivals = self._num_arrivals + 1
        try:
            self._enlist(self._admission.prepare(order, arrival, future, listener))
        except RequestRefused as refusal:
            future.set_exception(refusal)
        finally:
            with self._changed:
                self._num_preparing -= 1
                self._changed.notify_all()
        return future

    def _enlist(self, sequence: EdgeSequence) -> None:
        request_id = sequence.order.request_id
        with self._changed:
            if request_id in self._sequences:
                raise ValueError(f"request {request_id} is in flight already")
            self._sequences[request_id] = sequence
            self._arrived.append(sequence)
            self._changed.notify_all()

    def cancel(self, request_id: str) -> None:
        """Give the request up; its slot is free at the next step. Idempotent, unknown ids are ignored."""
        with self._changed:
            if request_id in self._sequences:
                self._cancelled.add(request_id)
                self._changed.notify_all()

    def progress(self, request_id: str) -> int:
        """Tokens of prompt and answer computed so far; 0 if the request is unknown."""
        sequence = self._sequences.get(request_id)
        return 0 if sequence is None else sequence.computed

    def cache_statistics(self) -> CacheStatistics:
        """The prefix cache as of now."""
        return self._cache.statistics()

    def verification_statistics(self) -> None:
        """No draft is verified here."""

    @property
    def cached_prefixes(self) -> Self | None:
        """The prefix cache; None where it is off, or the model shares no prefixes."""
        return self if self._settings.kv_cache.enabled and self._model.shares_prefixes else None

    def prompt_of(self, messages: Sequence[Message]) -> list[int]:
        """The conversation in the model's tokens. Raises `RequestRefused` if it is too long."""
        return self._admission.prompt_of(messages)

    def cached_prefix_tokens(self, token_ids: Sequence[int], namespace: str) -> int:
        """How many of these first tokens the prefix cache holds for the namespace."""
        return self._cache.held_tokens(namespace, token_ids)

    @property
    def cache_losses(self) -> int:
        """Rises whenever the prefix cache gives something up."""
        return self._cache.evictions

    @property
    def in_flight(self) -> int:
        """Requests submitted and not finished."""
        return len(self._sequences)

    @property
    def alive(self) -> bool:
        """Whether the engine takes requests."""
        return self._thread.is_alive() and not self._closing and self._died is None

    def close(self) -> None:
        """Stop the thread, fail what is in flight with `EngineDied`, save prefixes if configured, free llama.cpp.

        Blocks. Idempotent.
        """
        with self._changed:
            if self._closing:
                return
            self._closing = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._num_preparing == 0)
        if self._thread.ident is not None:
            self._thread.join()
        self._fail_all(EngineDied("the edge engine was closed"))
        self._save_prefixes()
        self._admission.close()
        self._model.close()

    def _save_prefixes(self) -> None:
        if self._store is None or self._died is not None:
            return
        try:
            self._store.save(self._parked)
        except OSError as error:
            log.warning("prefixes_not_saved reason=%r", str(error))

    # The engine's thread

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                self._step()
        except Exception as error:  # whatever it was, nobody may wait for ever
            log.exception("edge_engine_died in_flight=%d", len(self._sequences))
            with self._changed:
                self._died = error
            self._fail_all(EngineDied(f"the edge engine died: {error}"))

    def _wait_for_work(self) -> bool:
        """Take in what arrived and what was cancelled; False when the engine is to stop."""
        with self._changed:
            while not (self._closing or self._arrived or self._cancelled or self._is_busy()):
                self._changed.wait()
            arrived, self._arrived = self._arrived, []
            cancelled, self._cancelled = self._cancelled, set()
        for sequence in arrived:
            self._scheduler.add(sequence)
        for request_id in cancelled:
            if gone := self._sequences.get(request_id):
                self._leave(gone)
                gone.future.set_exception(RequestCancelled(f"request {request_id} was cancelled"))
        return not self._closing

    def _is_busy(self) -> bool:
        return bool(self._scheduler.running or self._scheduler.waiting)

    def _step(self) -> None:
        self._scheduler.admit(self._enter)
        shares = self._plan()
        if not shares:
            return
        feeds = [_feed(share) for share in shares]
        began = time.perf_counter()
        try:
            logits = self._model.decode(feeds)
        except CellsExhausted:
            self._give_way()
            return
        took_s = time.perf_counter() - began
        num_writing = sum(_is_writing(share) for share in shares)
        self._pacing.learn(num_writing, sum(share.num_tokens for share in shares) - num_writing, took_s)
        for share in shares:
            self._note_computed(share)
        self._write([share.request for share, feed in zip(shares, feeds, strict=True) if feed.wants_logits], logits)

    def _enter(self, sequence: EdgeSequence) -> bool:
        """Give the request a KV sequence with its longest cached prefix, if its tokens fit."""
        headroom = HEADROOM_TOKENS * len(self._scheduler.running)
        kv_sequence = self._cache.open(
            sequence.tokens,
            namespace=sequence.namespace,
            shared=sequence.shares,
            headroom=headroom,
            resumed=sequence.preempted,
        )
        if kv_sequence is None:
            return False
        sequence.kv_sequence, sequence.computed = kv_sequence, self._cache.computed(kv_sequence)
        if not sequence.preempted:
            sequence.cached_tokens = sequence.computed
        return True

    def _plan(self) -> list[Share[EdgeSequence]]:
        """The shares of the next step, for which cells are free: the newest are preempted until they are."""
        while True:
            self._catch_up()
            num_writing = sum(len(sequence.tokens) - sequence.computed == 1 for sequence in self._scheduler.running)
            num_reading = self._pacing.prompt_tokens(
                num_writing, self._settings.step_tokens, crowded=self._scheduler.crowded
            )
            shares = self._scheduler.plan(num_reading)
            if sum(share.num_tokens for share in shares) <= self._cache.free_cells:
                return shares
            self._give_way()

    def _catch_up(self) -> None:
        """Let prompts that are being read share what others computed meanwhile."""
        for sequence in self._scheduler.running:
            if sequence.kv_sequence is not None and len(sequence.tokens) - sequence.computed > 1:
                spared = self._cache.catch_up(sequence.kv_sequence, sequence.tokens)
                sequence.computed += spared
                if not sequence.preempted:
                    sequence.cached_tokens += spared
                    self._cache.count_saved(spared)

    def _give_way(self) -> None:
        """Preempt the newest request: it waits, and goes on from what it computed, or reads that again, later."""
        sequence = self._scheduler.preempt()
        if sequence is None or sequence.kv_sequence is None:
            raise RuntimeError("one request alone does not fit into the KV cache")
        log.info("request_preempted request_id=%s written=%d", sequence.order.request_id, sequence.num_written)
        self._cache.close(sequence.kv_sequence, sequence.tokens)
        sequence.kv_sequence, sequence.computed, sequence.preempted = None, 0, True

    def _note_computed(self, share: Share[EdgeSequence]) -> None:
        sequence = share.request
        assert sequence.kv_sequence is not None
        self._cache.grow(sequence.kv_sequence, share.num_tokens)
        sequence.computed += share.num_tokens
        if share.num_tokens > 1 or sequence.num_written == 0:
            self._cache.attach(sequence.kv_sequence, sequence.tokens)

    def _write(self, sequences: list[EdgeSequence], logits: Logits) -> None:
        for place, sequence in enumerate(sequences):
            try:
                self._writer.write(sequence, logits[place])
                draft = None if sequence.finish_reason is None else self._writer.finish(sequence, self.vocabulary)
            except Exception as error:  # noqa: BLE001 - a strategy, a grammar: it fails the request that asked for it
                self._leave(sequence)
                sequence.future.set_exception(error)
                continue
            if draft is not None:
                self._leave(sequence)
                sequence.future.set_result(draft)

    def _leave(self, sequence: EdgeSequence) -> None:
        """Take the sequence out; what it computed is parked for others."""
        self._scheduler.remove(sequence)
        if sequence.kv_sequence is not None:
            self._cache.close(sequence.kv_sequence, sequence.tokens)
            sequence.kv_sequence = None
        with self._changed:
            self._sequences.pop(sequence.order.request_id, None)

    def _fail_all(self, error: EngineDied) -> None:
        with self._changed:
            sequences, self._sequences = list(self._sequences.values()), {}
        for sequence in sequences:
            sequence.future.set_exception(error)


def _capacity(settings: EdgeSettings) -> Capacity:
    return Capacity(
        cells=settings.max_in_flight_tokens,
        sequences=settings.max_in_flight + 1,  # one is the prefix cache's own
        step_tokens=settings.step_tokens,
        outputs=settings.max_in_flight,
        threads=settings.model.threads or len(os.sched_getaffinity(0)),
        gpu_layers=settings.model.gpu_layers,
    )


def _store(settings: EdgeSettings, model: Llama) -> PrefixStore | None:
    path = settings.kv_cache.save_path
    return PrefixStore(path, model) if path is not None and settings.kv_cache.enabled else None


def _is_writing(share: Share[EdgeSequence]) -> bool:
    return share.num_tokens == 1 and share.request.computed + 1 == len(share.request.tokens)


def _feed(share: Share[EdgeSequence]) -> Feed:
    sequence, end = share.request, share.request.computed + share.num_tokens
    assert sequence.kv_sequence is not None
    return Feed(
        sequence=sequence.kv_sequence,
        start=sequence.computed,
        tokens=sequence.tokens[sequence.computed : end],
        wants_logits=end == len(sequence.tokens),
    )
