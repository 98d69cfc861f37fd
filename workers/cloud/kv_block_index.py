"""Which blocks of token prefixes an engine's KV cache holds, according to its events.

Event batches are numbered, and a gap means that some were missed: then the index is cleared, and `generation` tells
those who have published its content. A sequence belongs to a cache namespace: a block is identified by its tokens and
the block before it, the first block by its tokens and the namespace. Pure.
"""

from collections.abc import Sequence

#: The engine's own name of a block.
BlockHash = bytes | int
#: What identifies a block: the block before it (for the first, the namespace) and its tokens.
_Place = tuple[BlockHash | str | None, tuple[int, ...]]


class KVBlockIndex:
    """The blocks of one engine. Not thread-safe."""

    def __init__(self) -> None:
        self._block_at: dict[_Place, BlockHash] = {}
        self._place_of: dict[BlockHash, _Place | None] = {}
        self._expected = 0
        self._block_size = 0
        #: Rises whenever the index is cleared.
        self.generation = 0
        self.evictions = 0

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

    def begin_batch(self, sequence: int) -> None:
        """Start the batch of changes with this number. A skipped number means lost changes, so the index is cleared."""
        if sequence != self._expected:
            self.clear()
        self._expected = sequence + 1

    def clear(self) -> None:
        """Forget all blocks: all were evicted, or events were missed."""
        self._block_at.clear()
        self._place_of.clear()
        self.generation += 1

    def prefix_tokens(self, token_ids: Sequence[int], namespace: str) -> int:
        """How many of the first tokens are in full blocks that the namespace's requests may read."""
        num_cached = 0
        parent: BlockHash | str = namespace
        while self._block_size and num_cached + self._block_size <= len(token_ids):
            block = self._block_at.get((parent, tuple(token_ids[num_cached : num_cached + self._block_size])))
            if block is None:
                break
            num_cached, parent = num_cached + self._block_size, block
        return num_cached

    def store(
        self,
        block_hashes: Sequence[BlockHash],
        parent: BlockHash | str | None,
        token_ids: Sequence[int],
        block_size: int,
        *,
        private: bool = False,
    ) -> None:
        """Consecutive full blocks became readable. `parent`: the block before them, or the namespace.

        `private`: they depend on more than tokens and namespace, so that no prompt can be matched with them.
        """
        self._block_size = block_size
        for index, block in enumerate(block_hashes):
            place = (parent, tuple(token_ids[index * block_size : (index + 1) * block_size]))
            if not private:
                self._block_at[place] = block
            self._place_of[block] = None if private else place
            parent = block

    def remove(self, block_hashes: Sequence[BlockHash]) -> None:
        """Blocks were evicted."""
        for block in block_hashes:
            place = self._place_of.pop(block, None)
            self.evictions += 1
            if place is not None:
                self._block_at.pop(place, None)
