"""Prefixes that no running request uses, offloaded from the KV cells to memory.

llama.cpp's attention reads every cell in use, so a prefix that stayed in the cells would slow down every decode.
Offloaded it costs only memory, and restoring it takes a hundredth of computing it again (docs/log.md, "What idle cells
cost"). What several prefixes have in common is kept once: each prefix is a chain of segments, as in a radix tree.
Eviction takes the least recently used segment that no other continues, of any cache namespace; nothing is shared
between namespaces. Pure; knows no llama.cpp and no requests.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from workers.edge.radix_tree import RadixTree


@dataclass(eq=False, frozen=True, slots=True)
class Segment:
    """The state of the cells of `tokens`, at positions from `start` on; its parent has what comes before."""

    id: int
    start: int
    tokens: tuple[int, ...]
    state: bytearray
    parent: "Segment | None"


class Piece(NamedTuple):
    """Positions [segment.start, end) of a segment."""

    segment: Segment
    end: int


class OffloadedPrefixes:
    """At most `max_tokens` tokens, shared ones counted once. Not thread-safe, except `match_length`."""

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self._tree = RadixTree()
        #: Least recently used first. A use touches the segment first and its ancestors after it, so that a segment
        #: never comes before one that continues it: the first can always be evicted.
        self._segments: OrderedDict[int, Segment] = OrderedDict()
        self._last_id = 0
        #: Bytes of all states.
        self.num_bytes = 0
        #: Segments that were dropped for lack of room.
        self.evictions = 0

    def __len__(self) -> int:
        return len(self._segments)

    def __iter__(self) -> Iterator[Segment]:
        """Least recently used first; a segment always before its parent."""
        return iter(tuple(self._segments.values()))

    @property
    def num_tokens(self) -> int:
        """Distinct tokens."""
        return self._tree.num_tokens

    def namespace_of(self, segment: Segment) -> str:
        """The cache namespace that the segment belongs to."""
        return self._tree.namespace_of(segment.id)

    def tokens_of(self, segment: Segment) -> tuple[int, ...]:
        """All tokens of the prefix that ends with the segment."""
        return self._tree.tokens_of(segment.id)

    def match_length(self, namespace: str, tokens: Sequence[int]) -> int:
        """The length of the namespace's longest prefix of `tokens`. Any thread may ask; it may be outdated at once."""
        return self._tree.match_length(namespace, tokens)

    def find(self, namespace: str, tokens: Sequence[int]) -> list[Piece]:
        """The pieces of the namespace's longest prefix of `tokens`, in order. They count as used now."""
        pieces = self._pieces(namespace, tokens)
        self._touch(pieces)
        return pieces

    def offload(self, namespace: str, tokens: Sequence[int], read: Callable[[int], bytearray]) -> None:
        """Keep the cells of `tokens`; evicts what there is no more room for.

        `read(start)` returns the state of the cells from position `start` on. Only what is not here yet is read; an
        empty state is not kept.
        """
        pieces = self.find(namespace, tokens)
        start = pieces[-1].end if pieces else 0
        if start < len(tokens) <= self.max_tokens and (state := read(start)):
            self._add(namespace, start, tokens, state, pieces)
            while self._tree.num_tokens > self.max_tokens:
                self._evict()

    def load(self, namespace: str, start: int, tokens: Sequence[int], state: bytearray) -> bool:
        """Add a saved segment that ends the prefix `tokens`. Returns False if its parent is missing or room is."""
        pieces = self._pieces(namespace, tokens)
        if (pieces[-1].end if pieces else 0) != start or not start < len(tokens):
            return False
        if self.num_tokens + len(tokens) - start > self.max_tokens:
            return False
        self._add(namespace, start, tokens, state, pieces)
        return True

    def _pieces(self, namespace: str, tokens: Sequence[int]) -> list[Piece]:
        match = self._tree.match(namespace, tokens)
        pieces: list[Piece] = []
        end = match.length
        segment = None if match.sequence is None else self._segments[match.sequence]
        while segment is not None:
            if segment.start < end:
                pieces.append(Piece(segment, end))
                end = segment.start
            segment = segment.parent
        return pieces[::-1]

    def _add(
        self, namespace: str, start: int, tokens: Sequence[int], state: bytearray, pieces: Sequence[Piece]
    ) -> None:
        self._last_id += 1
        parent = pieces[-1].segment if pieces else None
        segment = Segment(self._last_id, start, tuple(tokens[start:]), state, parent)
        self._segments[segment.id] = segment
        self._tree.place(namespace, segment.id, tokens)
        self.num_bytes += len(state)
        self._touch(pieces)

    def _touch(self, pieces: Sequence[Piece]) -> None:
        segment = pieces[-1].segment if pieces else None
        while segment is not None:
            self._segments.move_to_end(segment.id)
            segment = segment.parent

    def _evict(self) -> None:
        segment_id, segment = self._segments.popitem(last=False)
        self._tree.remove(segment_id)
        self.num_bytes -= len(segment.state)
        self.evictions += 1
