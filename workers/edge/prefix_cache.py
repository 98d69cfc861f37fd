"""The KV cache: which sequence has which cells, which cells are shared, and which prefixes are offloaded.

Owns sequence ids and the count of cells; acts only through `KVCells`, which copies, frees, saves and restores them.
Knows no llama.cpp and no requests. Cells are for running requests alone: what a finished one computed is offloaded
(`workers.edge.prefix_offload`), and restored for the next one with the same prefix. All of this happens within a cache
namespace: what was computed for one is never used, nor counted, for another.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from schemas.workers import CacheStatistics
from workers.edge.prefix_offload import OffloadedPrefixes
from workers.edge.radix_tree import RadixTree


class KVCells(Protocol):
    """KV cells by sequence id: a cell may belong to many sequences, and is free when it belongs to none."""

    def copy(self, source: int, target: int, start: int, end: int) -> None:
        """Let `target` share the cells of `source` at positions [start, end)."""

    def remove(self, sequence_id: int, start: int = 0, end: int = -1) -> None:
        """Take the sequence out of its cells at positions [start, end); an `end` of -1 means all that follow."""

    def state(self, sequence_id: int) -> bytearray:
        """A copy of the sequence's cells as bytes; empty if that is not possible."""

    def restore(self, sequence_id: int, state: bytearray) -> bool:
        """Fill free cells of an empty sequence from `state`. Returns False, having changed nothing, if it cannot."""


@dataclass(eq=False, slots=True)
class KVSequence:
    """The KV cells of one running request."""

    id: int
    #: Shares prefixes within this cache namespace; None neither reads the cache nor fills it.
    namespace: str | None
    #: Whether the request was preempted before, so that it is in the statistics already.
    resumed: bool
    #: Tokens that have cells.
    num_computed: int = 0
    #: How many of those are in the radix tree, where others find and share them.
    num_indexed: int = 0


class PrefixCache:
    """Cells for `num_sequences` - 1 running requests, `num_cells` tokens in total.

    The remaining sequence id is scratch: parts of a sequence are offloaded and restored through it.
    """

    def __init__(
        self, cells: KVCells, offloaded: OffloadedPrefixes, *, num_cells: int, num_sequences: int, enabled: bool
    ) -> None:
        self._cells, self._offloaded = cells, offloaded
        self._num_cells, self._enabled = num_cells, enabled
        self._tree = RadixTree()
        self._scratch_id, *self._free_ids = range(num_sequences)
        #: Cells of tokens that are not in the tree.
        self._num_private = 0
        self._hits = self._misses = self._tokens_saved = 0

    @property
    def free_cells(self) -> int:
        """Cells that belong to no sequence."""
        return self._num_cells - self._tree.num_tokens - self._num_private

    def allocate(
        self, tokens: Sequence[int], *, namespace: str | None, headroom: int, resumed: bool = False
    ) -> KVSequence | None:
        """Cells for a request that is about to compute `tokens`; None if those and `headroom` more do not fit now.

        The longest cached prefix of the namespace is in them already, without the last token, whose logits are needed.
        A `resumed` request is not counted a second time.
        """
        if not self._free_ids:
            return None
        sequence = KVSequence(self._free_ids.pop(), namespace if self._enabled else None, resumed)
        self._share_prefix(sequence, tokens)
        if self.free_cells < len(tokens) - sequence.num_computed + headroom:
            self._release(sequence)
            return None
        if sequence.namespace is not None:
            self._restore(sequence, sequence.namespace, tokens)
            if not resumed:
                self._hits += sequence.num_computed > 0
                self._misses += sequence.num_computed == 0
                self._tokens_saved += sequence.num_computed
        return sequence

    def extend(self, sequence: KVSequence, tokens: Sequence[int]) -> int:
        """Share what others have computed of `tokens` meanwhile; returns the number of tokens."""
        num_shared = self._share_prefix(sequence, tokens)
        if not sequence.resumed:
            self._tokens_saved += num_shared
        return num_shared

    def advance(self, sequence: KVSequence, num_tokens: int) -> None:
        """Count cells for the sequence's next `num_tokens` tokens, which have just been computed."""
        sequence.num_computed += num_tokens
        self._num_private += num_tokens

    def index(self, sequence: KVSequence, tokens: Sequence[int]) -> None:
        """Let others of the namespace share what the sequence has computed of `tokens`.

        Where another one has computed the same, both share one copy.
        """
        if sequence.namespace is None or sequence.num_computed == sequence.num_indexed:
            return
        computed = tokens[: sequence.num_computed]
        match = self._tree.match(sequence.namespace, computed)
        if match.sequence is not None and match.length > sequence.num_indexed:
            self._cells.remove(sequence.id, sequence.num_indexed, match.length)
            self._cells.copy(match.sequence, sequence.id, sequence.num_indexed, match.length)
        self._tree.place(sequence.namespace, sequence.id, computed)
        self._num_private -= sequence.num_computed - sequence.num_indexed
        sequence.num_indexed = sequence.num_computed

    def free(self, sequence: KVSequence, tokens: Sequence[int]) -> None:
        """Free the sequence's cells; what it has computed of `tokens` is offloaded."""
        if sequence.namespace is not None and sequence.num_computed:

            def read(start: int) -> bytearray:
                self._cells.copy(sequence.id, self._scratch_id, start, sequence.num_computed)
                state = self._cells.state(self._scratch_id)
                self._cells.remove(self._scratch_id)
                return state

            self._offloaded.offload(sequence.namespace, tokens[: sequence.num_computed], read)
        self._release(sequence)

    def cached_tokens(self, namespace: str, tokens: Sequence[int]) -> int:
        """The length of the longest cached prefix of `tokens`. Any thread may ask; it may be outdated at once."""
        return max(self._tree.match_length(namespace, tokens), self._offloaded.match_length(namespace, tokens))

    def statistics(self) -> CacheStatistics:
        """The cache as it is now, and its counts since the start."""
        return CacheStatistics(
            enabled=self._enabled,
            entries=len(self._offloaded),
            tokens=self._offloaded.num_tokens,
            max_tokens=self._offloaded.max_tokens,
            hits=self._hits,
            misses=self._misses,
            tokens_saved=self._tokens_saved,
            evictions=self._offloaded.evictions,
            bytes=self._offloaded.num_bytes,
        )

    def _share_prefix(self, sequence: KVSequence, tokens: Sequence[int]) -> int:
        """Share running requests' cells beyond what the sequence has; returns the number of tokens."""
        if sequence.namespace is None or sequence.num_computed > sequence.num_indexed:
            return 0
        match = self._tree.match(sequence.namespace, tokens[:-1])
        num_shared = match.length - sequence.num_computed
        if num_shared <= 0 or match.sequence is None:
            return 0
        self._cells.copy(match.sequence, sequence.id, sequence.num_computed, match.length)
        self._tree.place(sequence.namespace, sequence.id, tokens[: match.length])
        sequence.num_computed = sequence.num_indexed = match.length
        return num_shared

    def _restore(self, sequence: KVSequence, namespace: str, tokens: Sequence[int]) -> None:
        """Restore the offloaded part of the prompt beyond what the sequence has, as far as there is room for it."""
        for piece in self._offloaded.find(namespace, tokens[:-1]):
            if piece.end <= sequence.num_computed:
                continue
            segment = piece.segment
            if self.free_cells < len(segment.tokens) or not self._cells.restore(self._scratch_id, segment.state):
                break
            self._cells.copy(self._scratch_id, sequence.id, sequence.num_computed, piece.end)
            self._cells.remove(self._scratch_id)
            self.advance(sequence, piece.end - sequence.num_computed)
        self.index(sequence, tokens)

    def _release(self, sequence: KVSequence) -> None:
        self._num_private -= sequence.num_computed - sequence.num_indexed
        if sequence.id in self._tree:
            self._tree.remove(sequence.id)
        self._cells.remove(sequence.id)
        self._free_ids.append(sequence.id)
