"""A radix tree over token sequences: finds the sequence with the longest prefix of a prompt.

Each cache namespace has a tree of its own, so that nothing is ever shared, or found, across namespaces. Owns the index
and the number of distinct tokens in it, which is the number of KV cells that its sequences take up together. Knows
nothing about llama.cpp, about eviction order or about requests.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Self


@dataclass(eq=False, slots=True)
class _Node:
    """A node with the tokens that lead to it from its parent; `sequences` are those that end here. A root has none."""

    namespace: str
    tokens: tuple[int, ...]
    parent: Self | None
    children: dict[int, Self] = field(default_factory=dict)
    sequences: set[int] = field(default_factory=set)


class Match(NamedTuple):
    """A prefix of `length` tokens, and a sequence that has all of it (None if the length is 0)."""

    length: int
    sequence: int | None


class RadixTree:
    """Sequences by namespace and tokens. Those of one namespace share the nodes of their common prefixes."""

    def __init__(self) -> None:
        #: By namespace, for those that have a sequence.
        self._roots: dict[str, _Node] = {}
        #: The node where each sequence ends.
        self._ends: dict[int, _Node] = {}
        #: Distinct tokens: a prefix that several sequences of a namespace share is counted once.
        self.num_tokens = 0

    def __contains__(self, sequence: int) -> bool:
        return sequence in self._ends

    def match(self, namespace: str, tokens: Sequence[int]) -> Match:
        """The longest prefix of `tokens` in the namespace's tree, to the token."""
        node, length = self._descend(namespace, tokens)
        return Match(length, next(_sequences_below(node)) if node is not None and length else None)

    def match_length(self, namespace: str, tokens: Sequence[int]) -> int:
        """The length of that prefix. Any thread may ask while another changes the tree; it may be outdated then."""
        return self._descend(namespace, tokens)[1]

    def _descend(self, namespace: str, tokens: Sequence[int]) -> tuple[_Node | None, int]:
        """The node in which the longest prefix ends, and its length. None if the namespace has no sequence."""
        node, length = self._roots.get(namespace), 0
        if node is None:
            return None, 0
        while child := node.children.get(tokens[length]) if length < len(tokens) else None:
            common = _common_length(child.tokens, tokens, length)
            node, length = child, length + common
            if common < len(child.tokens):
                break
        return node, length

    def place(self, namespace: str, sequence: int, tokens: Sequence[int]) -> None:
        """Put the sequence at the end of `tokens` (at least one), wherever it was before."""
        old_end = self._ends.get(sequence)
        root = self._roots.get(namespace)
        if root is None:
            root = self._roots[namespace] = _Node(namespace, (), None)
        node, length = root, 0
        while length < len(tokens):
            child = node.children.get(tokens[length])
            if child is None:
                child = _Node(namespace, tuple(tokens[length:]), node)
                node.children[child.tokens[0]] = child
                self.num_tokens += len(child.tokens)
            else:
                common = _common_length(child.tokens, tokens, length)
                if common < len(child.tokens):
                    child = self._split(child, common)
            node, length = child, length + len(child.tokens)
        if old_end is node:
            return
        node.sequences.add(sequence)
        self._ends[sequence] = node
        if old_end is not None:
            old_end.sequences.discard(sequence)
            self._tidy(old_end)

    def remove(self, sequence: int) -> int:
        """Remove the sequence; returns the number of tokens that were only its own."""
        before = self.num_tokens
        node = self._ends.pop(sequence)
        node.sequences.discard(sequence)
        self._tidy(node)
        return before - self.num_tokens

    def namespace_of(self, sequence: int) -> str:
        """The namespace that the sequence was placed in."""
        return self._ends[sequence].namespace

    def tokens_of(self, sequence: int) -> tuple[int, ...]:
        """All tokens of the sequence."""
        parts: list[tuple[int, ...]] = []
        node: _Node | None = self._ends[sequence]
        while node is not None:
            parts.append(node.tokens)
            node = node.parent
        return tuple(token for part in reversed(parts) for token in part)

    def _split(self, node: _Node, at: int) -> _Node:
        """Split the node after `at` tokens; returns the new upper node. The sequences stay with the lower one."""
        assert node.parent is not None
        upper = _Node(node.namespace, node.tokens[:at], node.parent)
        node.parent.children[upper.tokens[0]] = upper
        node.tokens, node.parent = node.tokens[at:], upper
        upper.children[node.tokens[0]] = node
        return upper

    def _tidy(self, node: _Node) -> None:
        """Remove the node if it is an empty leaf, and so on upwards; merge it with its only child if none ends here.

        A root without children goes too, so that unused namespaces leave nothing behind.
        """
        while node.parent is not None and not node.sequences and not node.children:
            del node.parent.children[node.tokens[0]]
            self.num_tokens -= len(node.tokens)
            node = node.parent
        if node.parent is None:
            if not node.children:
                del self._roots[node.namespace]
        elif not node.sequences and len(node.children) == 1:
            (child,) = node.children.values()
            child.tokens, child.parent = node.tokens + child.tokens, node.parent
            node.parent.children[child.tokens[0]] = child


def _common_length(edge: tuple[int, ...], tokens: Sequence[int], start: int) -> int:
    """How many tokens of the edge are in `tokens` from `start` on."""
    piece = tuple(tokens[start : start + len(edge)])
    if piece == edge:
        return len(edge)
    return next((i for i, (own, other) in enumerate(zip(edge, piece, strict=False)) if own != other), len(piece))


def _sequences_below(node: _Node) -> Iterator[int]:
    """Sequences that have all of the node's tokens."""
    nodes = [node]
    while nodes:
        node = nodes.pop()
        yield from node.sequences
        nodes.extend(node.children.values())
