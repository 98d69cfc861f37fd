"""The KV cache: who holds which cells, what is shared between requests in flight, and what is parked for later ones.

Owns sequence ids and the count of cells; performs nothing but sharing, freeing, copying out and in through
`Sequences`. Knows no llama.cpp and no requests. Cells are for requests in flight alone: what a finished one computed
is copied out (`workers.edge.prefix_offload`), and back in for one that begins alike. Both happen within a cache
namespace only: what one namespace computed is never another's, in cells or in what is counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from schemas.workers import CacheStatistics
from workers.edge.prefix_offload import OffloadedPrefixes
from workers.edge.radix_tree import RadixTree


class Sequences(Protocol):
    """KV cells by sequence: a cell may belong to many sequences, and is free when it belongs to none."""

    def copy(self, source: int, target: int, start: int, end: int) -> None:
        """Let `target` share the cells of `source` at positions [start, end)."""

    def cut(self, sequence: int, start: int, end: int) -> None:
        """Take the sequence out of its cells at positions [start, end)."""

    def remove(self, sequence: int) -> None:
        """Take the sequence out of all its cells."""

    def state(self, sequence: int) -> bytearray:
        """A copy of the sequence's cells; empty if there is none to be had."""

    def restore(self, sequence: int, state: bytearray) -> bool:
        """Fill free cells, as the sequence's, with what `state` gave; False, having changed nothing, if it cannot."""


@dataclass(slots=True)
class _Active:
    """A sequence that a request writes to."""

    namespace: str
    shared: bool
    #: Tokens that have cells.
    computed: int
    #: How many of them are in the tree, for others to share.
    attached: int


class PrefixCache:
    """Cells for requests in flight, at most `num_sequences` less one of them, `num_cells` tokens together.

    One sequence is ours, to copy a part of another out or in.
    """

    def __init__(
        self, sequences: Sequences, parked: OffloadedPrefixes, *, num_cells: int, num_sequences: int, enabled: bool
    ) -> None:
        self._sequences, self._num_cells, self._enabled = sequences, num_cells, enabled
        self._parked = parked
        self._tree = RadixTree()
        self._scratch, *self._unused = range(num_sequences)
        self._active: dict[int, _Active] = {}
        self._num_private = 0
        self._hits = self._misses = self._tokens_saved = 0

    @property
    def free_cells(self) -> int:
        """Cells that hold nothing."""
        return self._num_cells - self._tree.num_tokens - self._num_private

    def open(
        self, tokens: Sequence[int], *, namespace: str, shared: bool, headroom: int, resumed: bool = False
    ) -> int | None:
        """A sequence for a request about to read `tokens`, or None if they and `headroom` more do not fit now.

        The longest prefix that is cached in the namespace is in it already, but for the last token, whose logits are
        wanted (see `computed`).
        `shared` False neither reads the cache nor feeds it. A `resumed` request is not counted a second time.
        """
        if not self._unused:
            return None
        sequence = self._unused.pop()
        active = self._active[sequence] = _Active(namespace, shared and self._enabled, 0, 0)
        self.catch_up(sequence, tokens)
        if self.free_cells < len(tokens) - active.computed + headroom:
            self._discard(sequence)
            return None
        if active.shared:
            self._unpark(sequence, tokens)
            if not resumed:
                self._hits += active.computed > 0
                self._misses += active.computed == 0
                self._tokens_saved += active.computed
        return sequence

    def computed(self, sequence: int) -> int:
        """Tokens of the active sequence that have cells."""
        return self._active[sequence].computed

    def catch_up(self, sequence: int, tokens: Sequence[int]) -> int:
        """Share what others of the namespace computed of `tokens` past this sequence's end; how many that spares."""
        active = self._active[sequence]
        if not active.shared or active.computed > active.attached:
            return 0
        match = self._tree.match(active.namespace, tokens[:-1])
        spared = match.length - active.computed
        if spared <= 0 or match.sequence is None:
            return 0
        self._sequences.copy(match.sequence, sequence, active.computed, match.length)
        self._tree.place(active.namespace, sequence, tokens[: match.length])
        active.computed = active.attached = match.length
        return spared

    def count_saved(self, num_tokens: int) -> None:
        """Add to the statistics tokens that `catch_up` spared a request already counted."""
        self._tokens_saved += num_tokens

    def grow(self, sequence: int, num_tokens: int) -> None:
        """Note that the sequence has cells for so many tokens more."""
        self._active[sequence].computed += num_tokens
        self._num_private += num_tokens

    def attach(self, sequence: int, tokens: Sequence[int]) -> None:
        """Let others of the namespace share what the sequence has computed of `tokens`.

        What another of them computed too is kept once.
        """
        active = self._active[sequence]
        if not active.shared or active.computed == active.attached:
            return
        held = tokens[: active.computed]
        match = self._tree.match(active.namespace, held)
        if match.sequence is not None and match.length > active.attached:
            self._sequences.cut(sequence, active.attached, match.length)
            self._sequences.copy(match.sequence, sequence, active.attached, match.length)
        self._tree.place(active.namespace, sequence, held)
        self._num_private -= active.computed - active.attached
        active.attached = active.computed

    def close(self, sequence: int, tokens: Sequence[int]) -> None:
        """The request is done with its sequence, whose cells are free again; what it computed is parked."""
        active = self._active[sequence]
        if active.shared and active.computed:

            def read(start: int) -> bytearray:
                self._sequences.copy(sequence, self._scratch, start, active.computed)
                state = self._sequences.state(self._scratch)
                self._sequences.remove(self._scratch)
                return state

            self._parked.park(active.namespace, tokens[: active.computed], read)
        self._discard(sequence)

    def held_tokens(self, namespace: str, tokens: Sequence[int]) -> int:
        """How many of these first tokens are cached for the namespace. Safe on any thread; out of date at once."""
        return max(self._tree.match_length(namespace, tokens), self._parked.match_length(namespace, tokens))

    @property
    def evictions(self) -> int:
        """How often a parked prefix, or a part of one, was given up for want of room."""
        return self._parked.evictions

    def statistics(self) -> CacheStatistics:
        """The cache as it is now and what it did so far."""
        return CacheStatistics(
            enabled=self._enabled,
            entries=len(self._parked),
            tokens=self._parked.num_tokens,
            max_tokens=self._parked.max_tokens,
            hits=self._hits,
            misses=self._misses,
            tokens_saved=self._tokens_saved,
            evictions=self.evictions,
            bytes=self._parked.num_bytes,
        )

    def _unpark(self, sequence: int, tokens: Sequence[int]) -> None:
        """Copy back what is parked of the prompt beyond what the sequence has, as far as there is room meanwhile."""
        active = self._active[sequence]
        for piece in self._parked.find(active.namespace, tokens[:-1]):
            if piece.end <= active.computed:
                continue
            segment = piece.segment
            if self.free_cells < len(segment.tokens) or not self._sequences.restore(self._scratch, segment.state):
                break
            self._sequences.copy(self._scratch, sequence, active.computed, piece.end)
            self._sequences.remove(self._scratch)
            self.grow(sequence, piece.end - active.computed)
        self.attach(sequence, tokens)

    def _discard(self, sequence: int) -> None:
        active = self._active.pop(sequence)
        self._num_private -= active.computed - active.attached
        if sequence in self._tree:
            self._tree.remove(sequence)
        self._sequences.remove(sequence)
        self._unused.append(sequence)
