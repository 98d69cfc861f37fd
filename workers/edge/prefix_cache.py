"""The KV cache as a store of prefixes: who holds which cells, what is shared, and what goes when room is short.

Owns sequence ids, the count of cells and the order of eviction; performs nothing but sharing and freeing through
`Sequences`. Knows no llama.cpp and no requests. A finished sequence stays as an idle prefix until its room is needed;
the least recently used leaf goes first, cut from its end only as far as needed, since its beginning is what is shared.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from schemas.workers import CacheStatistics
from workers.edge.radix import RadixTree

#: Tokens cut off an idle prefix at once, at least: fewer, larger cuts.
MIN_CUT_TOKENS = 32


class Sequences(Protocol):
    """KV cells by sequence: a cell may belong to many sequences, and is free when it belongs to none."""

    def copy(self, source: int, target: int, start: int, end: int) -> None:
        """Let `target` share the cells of `source` at positions [start, end)."""

    def cut(self, sequence: int, start: int, end: int) -> None:
        """Take the sequence out of its cells at positions [start, end)."""

    def remove(self, sequence: int, start: int = 0) -> None:
        """Take the sequence out of its cells from `start` on."""


@dataclass(slots=True)
class _Active:
    """A sequence that a request writes to."""

    shared: bool
    #: Tokens that have cells.
    computed: int
    #: How many of them are in the tree, for others to share.
    attached: int


class PrefixCache:
    """Cells for `num_sequences` sequences of `num_cells` tokens together."""

    def __init__(
        self, sequences: Sequences, *, num_cells: int, num_sequences: int, bytes_per_cell: int, enabled: bool
    ) -> None:
        self._sequences, self._num_cells, self._enabled = sequences, num_cells, enabled
        self._bytes_per_cell = bytes_per_cell
        self._tree = RadixTree()
        self._unused = list(range(num_sequences))
        self._active: dict[int, _Active] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._num_private = 0
        self._hits = self._misses = self._tokens_saved = self._evictions = 0

    @property
    def free_cells(self) -> int:
        """Cells that hold nothing."""
        return self._num_cells - self._tree.num_tokens - self._num_private

    @property
    def idle(self) -> tuple[int, ...]:
        """Sequences that no request uses, least recently used first."""
        return tuple(self._idle)

    def tokens_of(self, sequence: int) -> tuple[int, ...]:
        """Tokens of an idle sequence."""
        return self._tree.tokens_of(sequence)

    def open(self, tokens: Sequence[int], *, shared: bool, headroom: int, resumed: bool = False) -> int | None:
        """A sequence for a request about to read `tokens`, or None if they and `headroom` more do not fit now.

        The longest cached prefix is in it already, but for the last token, whose logits are wanted (see `computed`).
        `shared` False neither reads the cache nor feeds it. A `resumed` request is not counted a second time.
        """
        sequence = self._take_unused()
        if sequence is None:
            return None
        active = self._active[sequence] = _Active(shared and self._enabled, 0, 0)
        if active.shared:
            self.catch_up(sequence, tokens)
        if self.free_cells + self._tree.tokens_only_in(self._idle.keys()) < len(tokens) - active.computed + headroom:
            self._discard(sequence)
            return None
        if active.shared and not resumed:
            self._hits += active.computed > 0
            self._misses += active.computed == 0
            self._tokens_saved += active.computed
        return sequence

    def computed(self, sequence: int) -> int:
        """Tokens of the active sequence that have cells."""
        return self._active[sequence].computed

    def catch_up(self, sequence: int, tokens: Sequence[int]) -> int:
        """Share what others have computed of `tokens` past the end of this sequence; how many tokens that spares."""
        active = self._active[sequence]
        if not active.shared or active.computed > active.attached:
            return 0
        match = self._tree.match(tokens[:-1])
        spared = match.length - active.computed
        if spared <= 0 or match.sequence is None:
            return 0
        self._sequences.copy(match.sequence, sequence, active.computed, match.length)
        self._tree.place(sequence, tokens[: match.length])
        active.computed = active.attached = match.length
        self.touch(match.sequence)
        return spared

    def count_saved(self, num_tokens: int) -> None:
        """Add to the statistics tokens that `catch_up` spared a request already counted."""
        self._tokens_saved += num_tokens

    def grow(self, sequence: int, num_tokens: int) -> None:
        """Note that the sequence has cells for so many tokens more."""
        self._active[sequence].computed += num_tokens
        self._num_private += num_tokens

    def attach(self, sequence: int, tokens: Sequence[int]) -> None:
        """Let others share what the sequence has computed of `tokens`. What another computed too is kept once."""
        active = self._active[sequence]
        if not active.shared or active.computed == active.attached:
            return
        held = tokens[: active.computed]
        match = self._tree.match(held)
        if match.sequence is not None and match.length > active.attached:
            self._sequences.cut(sequence, active.attached, match.length)
            self._sequences.copy(match.sequence, sequence, active.attached, match.length)
        self._tree.place(sequence, held)
        self._num_private -= active.computed - active.attached
        active.attached = active.computed

    def close(self, sequence: int, tokens: Sequence[int], *, keep: bool) -> None:
        """The request is done with its sequence; `keep` leaves it to later requests as an idle prefix."""
        if not (keep and self._active[sequence].shared and self._active[sequence].computed):
            self._discard(sequence)
            return
        self.attach(sequence, tokens)
        del self._active[sequence]
        self._keep(sequence)

    def adopt(self, sequence: int, tokens: Sequence[int]) -> None:
        """Keep a sequence from `take_for_loading` that holds cells for `tokens` as an idle prefix."""
        self._active[sequence] = _Active(shared=True, computed=len(tokens), attached=0)
        self._num_private += len(tokens)
        self.close(sequence, tokens, keep=bool(tokens))

    def take_for_loading(self) -> int | None:
        """A sequence to load a saved prefix into, for `adopt`; None if there is none unused."""
        return self._unused.pop() if self._unused else None

    def touch(self, sequence: int) -> None:
        """Make an idle prefix the most recently used one; one that was given up since is ignored."""
        if sequence in self._idle:
            self._idle.move_to_end(sequence)

    def make_room(self, num_cells: int) -> bool:
        """Cut idle prefixes, least recently used first, until so many cells are free; whether that was enough."""
        for sequence in tuple(self._idle):
            if self.free_cells >= num_cells:
                break
            exclusive = self._tree.exclusive(sequence)
            if exclusive:
                self._cut(sequence, max(MIN_CUT_TOKENS, num_cells - self.free_cells), exclusive)
        still_short = self.free_cells < num_cells
        return self.make_room(num_cells) if still_short and self._some_leaf_is_idle() else not still_short

    def held_tokens(self, tokens: Sequence[int]) -> int:
        """How many of these first tokens are cached for others to share. Safe on any thread; out of date at once."""
        return self._tree.match_length(tokens)

    @property
    def evictions(self) -> int:
        """How often an idle prefix was cut or dropped for want of room."""
        return self._evictions

    def statistics(self) -> CacheStatistics:
        """The cache as it is now and what it did so far."""
        return CacheStatistics(
            enabled=self._enabled,
            entries=len(self._idle),
            tokens=self._tree.num_tokens,
            max_tokens=self._num_cells,
            hits=self._hits,
            misses=self._misses,
            tokens_saved=self._tokens_saved,
            evictions=self._evictions,
            bytes=self._tree.num_tokens * self._bytes_per_cell,
        )

    def _some_leaf_is_idle(self) -> bool:
        return any(self._tree.exclusive(sequence) for sequence in self._idle)

    def _cut(self, sequence: int, wanted: int, exclusive: int) -> None:
        self._evictions += 1
        if wanted >= exclusive:
            self._drop_idle(sequence)
            return
        self._tree.trim(sequence, wanted)
        self._sequences.remove(sequence, len(self._tree.tokens_of(sequence)))

    def _keep(self, sequence: int) -> None:
        """Make it idle, and let go of idle prefixes that a longer one makes superfluous."""
        if any(other in self._idle for other in self._tree.extensions_of(sequence)):
            self._idle[sequence] = None
            self._drop_idle(sequence)
            return
        for other in [other for other in self._tree.prefixes_of(sequence) if other in self._idle]:
            self._drop_idle(other)
        self._idle[sequence] = None

    def _drop_idle(self, sequence: int) -> None:
        del self._idle[sequence]
        self._tree.remove(sequence)
        self._sequences.remove(sequence)
        self._unused.append(sequence)

    def _discard(self, sequence: int) -> None:
        active = self._active.pop(sequence)
        self._num_private -= active.computed - active.attached
        if sequence in self._tree:
            self._tree.remove(sequence)
        self._sequences.remove(sequence)
        self._unused.append(sequence)

    def _take_unused(self) -> int | None:
        if not self._unused and self._idle:
            self._evictions += 1
            self._drop_idle(next(iter(self._idle)))
        return self._unused.pop() if self._unused else None
