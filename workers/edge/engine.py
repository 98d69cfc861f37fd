"""The edge engine: continuous batching with llama.cpp; requests join and leave the batch at any step.

Owns the one thread that steps llama.cpp, and everything that thread touches. `scheduler`, `prefill_budget` and
`prefix_cache` decide what a step does; this module carries it out. Knows no queue, no Redis and no policy, and calls
nothing that a user may plug in.
"""

import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Self

from config.settings import EdgeSettings
from schemas.drafts import Draft
from schemas.requests import Message
from schemas.workers import CacheStatistics
from workers.edge.edge_sequence import DraftOrder, EdgeSequence, Listener
from workers.edge.llama import CellsExhausted, Llama, Logits, UnusableModel
from workers.edge.logprobs import token_logprob
from workers.edge.prefill_budget import PrefillBudget
from workers.edge.prefix_cache import PrefixCache
from workers.edge.prefix_offload import OffloadedPrefixes
from workers.edge.prefix_store import PrefixStore
from workers.edge.scheduler import ScheduledTokens, Scheduler
from workers.edge.sequence_builder import SequenceBuilder
from workers.edge.step_batch import TokenChunk
from workers.edge.token_metrics import Meter
from workers.runtime.failures import EngineDied, RequestCancelled, RequestRefused
from workers.runtime.vocabulary import fingerprint

__all__ = ["DraftOrder", "EdgeEngine", "UnusableModel"]

log = logging.getLogger(__name__)

#: Cells kept free for each running sequence when another is admitted, so that it is not preempted at once.
HEADROOM_TOKENS = 16


class EdgeEngine:
    """See `Engine`: one model on one thread. Raises `UnusableModel` if the file cannot serve."""

    engine_name = "llama.cpp"

    def __init__(self, settings: EdgeSettings, model_path: Path) -> None:
        self._model = model = Llama(model_path, settings)
        self._step_tokens = settings.step_tokens
        self.model_name = model.name
        self.vocabulary = fingerprint(model.token_texts())
        context_tokens = min(settings.model.context_tokens, model.trained_context, model.cells)
        self._builder = SequenceBuilder(model, context_tokens, settings.early_escalation)
        self._offloaded = OffloadedPrefixes(settings.kv_cache.max_size)
        self._caches_prefixes = settings.kv_cache.enabled and model.shares_prefixes
        self._cache = PrefixCache(
            model,
            self._offloaded,
            num_cells=model.cells,
            num_sequences=model.num_sequences,
            enabled=self._caches_prefixes,
        )
        self._scheduler = Scheduler(slots=settings.max_in_flight, step_tokens=settings.step_tokens)
        self._prefill_budget = PrefillBudget(in_tiles=settings.model.gpu_layers == 0)
        self._meter = Meter(
            model.vocab_size, temperature=settings.confidence.temperature, top_k=settings.confidence.top_k
        )
        self._store: PrefixStore | None = None
        if settings.kv_cache.enabled and settings.kv_cache.save_path is not None:
            self._store = PrefixStore(settings.kv_cache.save_path, model.path, model.build)
            self._store.load(self._offloaded)
        self._thread = threading.Thread(target=self._run, name="edge-engine", daemon=True)
        #: Guards what follows; notified when any of it changes.
        self._changed = threading.Condition()
        self._sequences: dict[str, EdgeSequence] = {}
        self._arrived: list[EdgeSequence] = []
        self._cancelled: set[str] = set()
        self._num_arrivals = 0
        #: Callers of `submit` that are reading the vocabulary, which must not be freed meanwhile.
        self._num_preparing = 0
        self._closing = False
        self._died: BaseException | None = None

    # Any thread

    def start(self) -> None:
        """Start the thread that steps llama.cpp. Call it once."""
        self._thread.start()

    def submit(self, order: DraftOrder, listener: Listener | None = None) -> Future[Draft]:
        """Ask for a draft; blocks only to tokenize the prompt and to check a grammar.

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
            sequence = self._builder.build(order, arrival, future, listener)
            with self._changed:
                if order.request_id in self._sequences:
                    raise ValueError(f"request {order.request_id} is in flight already")
                self._sequences[order.request_id] = sequence
                self._arrived.append(sequence)
        except RequestRefused as refusal:
            future.set_exception(refusal)
        finally:
            with self._changed:
                self._num_preparing -= 1
                self._changed.notify_all()
        return future

    def cancel(self, request_id: str) -> None:
        """Abort the request; its slot is free at the next step. Idempotent, unknown ids are ignored."""
        with self._changed:
            if request_id in self._sequences:
                self._cancelled.add(request_id)
                self._changed.notify_all()

    def progress(self, request_id: str) -> int:
        """Tokens of prompt and answer computed so far; 0 if the request is unknown."""
        sequence = self._sequences.get(request_id)
        return 0 if sequence is None else sequence.computed

    def cache_statistics(self) -> CacheStatistics:
        """The prefix cache as it is now."""
        return self._cache.statistics()

    def verification_statistics(self) -> None:
        """No draft is verified here."""

    @property
    def cached_prefixes(self) -> Self | None:
        """What can be asked for cached prefixes; None if there is no prefix cache."""
        return self if self._caches_prefixes else None

    def prompt_of(self, messages: Sequence[Message]) -> list[int]:
        """The conversation in the model's tokens. Raises `RequestRefused` if it is too long."""
        return self._builder.prompt_of(messages)

    def cached_prefix_tokens(self, token_ids: Sequence[int], namespace: str) -> int:
        """The length of the namespace's longest cached prefix of the tokens."""
        return self._cache.cached_tokens(namespace, token_ids)

    @property
    def cache_losses(self) -> int:
        """Rises with every eviction from the prefix cache."""
        return self._offloaded.evictions

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
        if self._store is not None and self._died is None:
            try:
                self._store.save(self._offloaded)
            except OSError as error:
                log.warning("prefixes_not_saved reason=%r", str(error))
        self._builder.close()
        self._model.close()

    # The engine's thread

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                self._step()
        except Exception as error:  # whatever it was, no caller may wait for ever
            log.exception("edge_engine_died in_flight=%d", len(self._sequences))
            with self._changed:
                self._died = error
            self._fail_all(EngineDied(f"the edge engine died: {error}"))

    def _wait_for_work(self) -> bool:
        """Take in new and cancelled requests; blocks while there is nothing to do. False when the engine is closing."""
        scheduler = self._scheduler
        with self._changed:
            while not (self._closing or self._arrived or self._cancelled or scheduler.running or scheduler.waiting):
                self._changed.wait()
            arrived, self._arrived = self._arrived, []
            cancelled, self._cancelled = self._cancelled, set()
        for sequence in arrived:
            scheduler.add(sequence)
        for request_id in cancelled:
            if gone := self._sequences.get(request_id):
                self._remove(gone)
                gone.future.set_exception(RequestCancelled(f"request {request_id} was cancelled"))
        return not self._closing

    def _step(self) -> None:
        self._scheduler.admit(self._allocate)
        scheduled = self._schedule()
        if not scheduled:
            return
        chunks = [_chunk(entry) for entry in scheduled]
        began = time.perf_counter()
        try:
            logits = self._model.decode(chunks)
        except CellsExhausted:
            self._preempt()
            return
        took_s = time.perf_counter() - began
        num_decoding = sum(chunk.wants_logits and len(chunk.tokens) == 1 for chunk in chunks)
        self._prefill_budget.learn(num_decoding, sum(len(chunk.tokens) for chunk in chunks) - num_decoding, took_s)
        for entry in scheduled:
            self._advance(entry)
        ready = [entry.sequence for entry, chunk in zip(scheduled, chunks, strict=True) if chunk.wants_logits]
        for sequence, row in zip(ready, logits, strict=True):
            self._append_token(sequence, row)

    def _allocate(self, sequence: EdgeSequence) -> bool:
        """Give the sequence KV cells with its longest cached prefix; False if its tokens do not fit now."""
        sequence.kv = self._cache.allocate(
            sequence.tokens,
            namespace=sequence.cache_namespace,
            headroom=HEADROOM_TOKENS * len(self._scheduler.running),
            resumed=sequence.preempted,
        )
        if sequence.kv is not None and not sequence.preempted:
            sequence.cached_tokens = sequence.computed
        return sequence.kv is not None

    def _schedule(self) -> list[ScheduledTokens]:
        """The next step; preempts the newest sequences until there are free cells for it."""
        while True:
            self._extend_prefixes()
            num_decoding = sum(sequence.pending == 1 for sequence in self._scheduler.running)
            num_prompt_tokens = self._prefill_budget.prompt_tokens(
                num_decoding, self._step_tokens, crowded=self._scheduler.crowded
            )
            scheduled = self._scheduler.schedule(num_prompt_tokens)
            if sum(entry.num_tokens for entry in scheduled) <= self._cache.free_cells:
                return scheduled
            self._preempt()

    def _extend_prefixes(self) -> None:
        """Let sequences in prefill share what others have computed meanwhile."""
        for sequence in self._scheduler.running:
            if sequence.kv is not None and sequence.pending > 1:
                num_shared = self._cache.extend(sequence.kv, sequence.tokens)
                if not sequence.preempted:
                    sequence.cached_tokens += num_shared

    def _preempt(self) -> None:
        """Send the newest sequence back to wait. What it has computed is offloaded, and restored if it still can be."""
        sequence = self._scheduler.preempt()
        if sequence is None or sequence.kv is None:
            raise RuntimeError("one request alone does not fit into the KV cache")
        log.info("request_preempted request_id=%s written=%d", sequence.order.request_id, len(sequence.metrics))
        self._cache.free(sequence.kv, sequence.tokens)
        sequence.kv, sequence.preempted = None, True

    def _advance(self, entry: ScheduledTokens) -> None:
        sequence = entry.sequence
        assert sequence.kv is not None
        self._cache.advance(sequence.kv, entry.num_tokens)
        if entry.num_tokens > 1 or not sequence.metrics:
            self._cache.index(sequence.kv, sequence.tokens)

    def _append_token(self, sequence: EdgeSequence, logits: Logits) -> None:
        """Sample and measure the sequence's next token; the request ends here if that was the last one."""
        sampling = sequence.order.sampling
        try:
            token = sequence.sample(logits)
            metrics = self._meter.measure(logits, token)
            if sampling.logprobs:
                entry = token_logprob(self._model, token, logits, metrics.log_total, sampling.top_logprobs)
                sequence.logprobs.append(entry)
            sequence.append(token, metrics, self._model.piece(token), ends_text=self._model.ends_text(token))
            draft = sequence.draft(self.model_name, self.vocabulary) if sequence.finish_reason else None
        except Exception as error:  # noqa: BLE001 - a grammar or a listener: only its own request fails
            self._remove(sequence)
            sequence.future.set_exception(error)
            return
        if draft is not None:
            self._remove(sequence)
            sequence.future.set_result(draft)

    def _remove(self, sequence: EdgeSequence) -> None:
        """Take the sequence out of the batch; what it has computed is offloaded for others."""
        self._scheduler.remove(sequence)
        if sequence.kv is not None:
            self._cache.free(sequence.kv, sequence.tokens)
            sequence.kv = None
        with self._changed:
            self._sequences.pop(sequence.order.request_id, None)

    def _fail_all(self, error: EngineDied) -> None:
        with self._changed:
            sequences, self._sequences = list(self._sequences.values()), {}
        for sequence in sequences:
            sequence.future.set_exception(error)


def _chunk(entry: ScheduledTokens) -> TokenChunk:
    sequence, start = entry.sequence, entry.sequence.computed
    end = start + entry.num_tokens
    assert sequence.kv is not None
    return TokenChunk(sequence.kv.id, start, sequence.tokens[start:end], wants_logits=end == len(sequence.tokens))
