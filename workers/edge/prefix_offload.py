"""Prefixes that no request uses, kept as bytes outside of the KV cells until one does.

llama.cpp's attention passes over every cell in use, so a prefix that waits in the cells slows down whoever writes;
copied out it costs memory alone, and copying it back a hundredth of reading it again (docs/log.md, "What idle cells
cost"). What several prefixes begin with is kept once: each is a chain of segments, as in a radix tree. The least
recently used segment without others behind it goes first, whatever its cache namespace; nothing is shared across
namespaces. Pure; knows no llama.cpp and no requests.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from workers.edge.radix_tree import RadixTree


@dataclass(eq=False, frozen=True, slots=True)
class Segment:
    """The cells of `tokens`, which are at positions from `start` on; what is before them is the parent's."""

    number: int
    start: int
    tokens: tuple[int, ...]
    state: bytearray
    parent: "Segment | None"


@dataclass(frozen=True, slots=True)
class Piece:
    """Positions from `segment.start` to before `end` of a segment."""

    segment: Segment
    end: int


class OffloadedPrefixes:
    """At most `max_tokens` tokens, what is shared counted once. `match_length` is safe on any thread."""

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self._tree = RadixTree()
        #: Least recently used first. Whatever is used, what it rests on is used right after it: no segment ever comes
        #: before one that rests on it, so that the first is always one on which nothing rests.
        self._segments: OrderedDict[int, Segment] = OrderedDict()
        self._num_ever = 0
        #: Bytes of all states.
        self.num_bytes = 0
        #: Segments that went for want of room.
        self.evictions = 0

    def __len__(self) -> int:
        return len(self._segments)

    def __iter__(self) -> Iterator[Segment]:
        """Least recently used first; a segment always before those that it rests on."""
        return iter(tuple(self._segments.values()))

    @property
    def num_tokens(self) -> int:
        """Distinct tokens."""
        return self._tree.num_tokens

    def namespace_of(self, segment: Segment) -> str:
        """The namespace whose segment it is."""
        return self._tree.namespace_of(segment.number)

    def tokens_of(self, segment: Segment) -> tuple[int, ...]:
        """All tokens up to the segment's end."""
        return self._tree.tokens_of(segment.number)

    def match_length(self, namespace: str, tokens: Sequence[int]) -> int:
        """How many of these first tokens are here for the namespace."""
        return self._tree.match_length(namespace, tokens)

    def find(self, namespace: str, tokens: Sequence[int]) -> list[Piece]:
        """The namespace's longest prefix of `tokens` here, piece after piece; it is the most recently used one now."""
        pieces = self._pieces(namespace, tokens)
        self._touch(pieces)
        return pieces

    def park(self, namespace: str, tokens: Sequence[int], read: Callable[[int], bytearray]) -> None:
        """Keep the cells of `tokens`. `read` gives the state of those at positions from its argument on.

        Only what is not here yet is read; an empty state is not kept.
        """
        pieces = self.find(namespace, tokens)
        start = pieces[-1].end if pieces else 0
        if start < len(tokens) <= self.max_tokens and (state := read(start)):
            self._add(namespace, start, tokens, state, pieces)
            while self._tree.num_tokens > self.max_tokens:
                self._evict()

    def put(self, namespace: str, start: int, tokens: Sequence[int], state: bytearray) -> bool:
        """Take in a segment with all tokens up to its end, if there is room and what it rests on is here; whether."""
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
        self._num_ever += 1
        parent = pieces[-1].segment if pieces else None
        segment = Segment(self._num_ever, start, tuple(tokens[start:]), state, parent)
        self._segments[segment.number] = segment
        self._tree.place(namespace, segment.number, tokens)
        self.num_bytes += len(state)
        self._touch(pieces)

    def _touch(self, pieces: Sequence[Piece]) -> None:
        segment = pieces[-1].segment if pieces else None
        while segment is not None:
            self._segments.move_to_end(segment.number)
            segment = segment.parent

    def _evict(self) -> None:
        number, segment = self._segments.popitem(last=False)
        self._tree.remove(number)
        self.num_bytes -= len(segment.state)
        self.evictions += 1
