"""Which blocks of token prefixes an engine's KV cache holds, according to its events.

Event batches are numbered, and a gap means that some were missed: then the index is cleared, and `generation` tells
those who have published its content. A sequence belongs to a cache namespace: a block is identified by its tokens and
the block before it, the first block by its tokens and the namespace. Pure.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Stored:
    """Consecutive full blocks became readable."""

    #: The engine's own names of the blocks.
    block_hashes: tuple[bytes | int, ...]
    #: The block before the first; None at the beginning of a sequence.
    parent: bytes | int | None
    token_ids: tuple[int, ...]
    block_size: int
    #: The namespace of the sequence, given with its first block (where `parent` is None); None with others.
    namespace: str | None = None
    #: Whether they depend on more than tokens and namespace, so that no prompt can be matched with them.
    private: bool = False


@dataclass(frozen=True)
class Removed:
    """Blocks were evicted."""

    block_hashes: tuple[bytes | int, ...]


@dataclass(frozen=True)
class Cleared:
    """All blocks were evicted."""


BlockEvent = Stored | Removed | Cleared
#: What identifies a block: the block before it (for the first, the namespace) and its tokens.
_Place = tuple[bytes | int | str | None, tuple[int, ...]]


class KVBlockIndex:
    """The blocks of one engine. Not thread-safe."""

    def __init__(self) -> None:
        self._block_at: dict[_Place, bytes | int] = {}
        self._place_of: dict[bytes | int, _Place | None] = {}
        self._expected = 0
        self._block_size = 0
        #: Rises whenever the index is cleared.
        self.generation = 0
        self.evictions = 0
        self.gaps = 0

    def __len__(self) -> int:
        return len(self._place_of)

    @property
    def tokens(self) -> int:
        """Tokens in all blocks."""
        return len(self) * self._block_size

    @property
    def losses(self) -> int:
        """Rises whenever a block is evicted, or the index is cleared."""
        return self.evictions + self.generation

    def apply(self, sequence: int, events: Sequence[BlockEvent]) -> None:
        """Take the batch of events with this number; a gap in the numbers clears the index first."""
        if sequence != self._expected:
            self.gaps += 1
            self.clear()
        self._expected = sequence + 1
        for event in events:
            match event:
                case Stored():
                    self._store(event)
                case Removed():
                    self._remove(event)
                case Cleared():
                    self.clear()

    def clear(self) -> None:
        """Forget all blocks: all were evicted, or events were missed."""
        self._block_at.clear()
        self._place_of.clear()
        self.generation += 1

    def prefix_tokens(self, token_ids: Sequence[int], namespace: str) -> int:
        """How many of the first tokens are in full blocks that the namespace's requests may read."""
        num_cached = 0
        parent: bytes | int | str = namespace
        while self._block_size and num_cached + self._block_size <= len(token_ids):
            block = self._block_at.get((parent, tuple(token_ids[num_cached : num_cached + self._block_size])))
            if block is None:
                break
            num_cached, parent = num_cached + self._block_size, block
        return num_cached

    def _store(self, event: Stored) -> None:
        self._block_size = event.block_size
        parent = event.namespace if event.parent is None else event.parent
        for index, block in enumerate(event.block_hashes):
            place = (parent, event.token_ids[index * event.block_size : (index + 1) * event.block_size])
            if not event.private:
                self._block_at[place] = block
            self._place_of[block] = None if event.private else place
            parent = block

    def _remove(self, event: Removed) -> None:
        for block in event.block_hashes:
            place = self._place_of.pop(block, None)
            self.evictions += 1
            if place is not None:
                self._block_at.pop(place, None)
