"""Which blocks of token prefixes an engine's KV cache holds, followed through its events.

Owns the account, and knows when it cannot be trusted: events are numbered, and a gap means that something was missed.
Then nothing counts as held until it is seen stored again, and `generation` tells those who published it. A sequence
belongs to a cache namespace, which is part of where its first block is, and so of where all that follow are. Pure.
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
    #: Whose requests can read them: told with the first block of a sequence (where `parent` is None), None with others.
    namespace: str | None = None
    #: Whether they depend on more than tokens and namespace, so that it cannot be told which prompts can read them.
    private: bool = False


@dataclass(frozen=True)
class Removed:
    """Blocks were given up."""

    block_hashes: tuple[bytes | int, ...]


@dataclass(frozen=True)
class Cleared:
    """All blocks were given up."""


BlockEvent = Stored | Removed | Cleared
#: A block: the one before it, or the namespace where it is the first, and its tokens.
_Place = tuple[bytes | int | str | None, tuple[int, ...]]


class KVBlockIndex:
    """The account of one engine. Not thread-safe."""

    def __init__(self) -> None:
        self._block_at: dict[_Place, bytes | int] = {}
        self._place_of: dict[bytes | int, _Place | None] = {}
        self._expected = 0
        self._block_size = 0
        #: Rises whenever all that was held before is void.
        self.generation = 0
        self.evictions = 0
        self.gaps = 0

    def __len__(self) -> int:
        return len(self._place_of)

    @property
    def tokens(self) -> int:
        """Tokens in all blocks held."""
        return len(self) * self._block_size

    @property
    def losses(self) -> int:
        """Rises whenever something that was held no longer is, or may no longer be."""
        return self.evictions + self.generation

    def apply(self, sequence: int, events: Sequence[BlockEvent]) -> None:
        """Take the batch of events with this number; a number that is not the next voids what came before."""
        if sequence != self._expected:
            self.gaps += 1
            self.void()
        self._expected = sequence + 1
        for event in events:
            match event:
                case Stored():
                    self._store(event)
                case Removed():
                    self._remove(event)
                case Cleared():
                    self.void()

    def void(self) -> None:
        """Nothing counts as held until it is seen stored again: all blocks were given up, or something was missed."""
        self._block_at.clear()
        self._place_of.clear()
        self.generation += 1

    def prefix_tokens(self, token_ids: Sequence[int], namespace: str) -> int:
        """How many of the first tokens are in full blocks that the namespace's requests may read."""
        held = 0
        parent: bytes | int | str = namespace
        while self._block_size and held + self._block_size <= len(token_ids):
            block = self._block_at.get((parent, tuple(token_ids[held : held + self._block_size])))
            if block is None:
                break
            held, parent = held + self._block_size, block
        return held

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
