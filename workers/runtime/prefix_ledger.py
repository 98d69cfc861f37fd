"""Which blocks of the conversations that a worker has served are still in its engine's prefix cache.

Keeps the served conversations by their tokens, with the number of blocks of each that are published as cached. An
engine counts tokens, while the index counts bytes of the conversation: if a share of a conversation's tokens is cached,
the same share of its blocks, rounded down, counts as cached. Pure; knows no engine and no Redis.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from schemas.requests import AcceptedRequest

#: Tokens of a conversation that may be missing from the cache even if all of it is cached: a template ends a prompt
#: with the beginning of the next answer, and the last token's state is always recomputed.
NEVER_CACHED_TOKENS = 8


#: Called with each request that the engine has answered, and its answer's text.
Served = Callable[[AcceptedRequest, str], None]


@dataclass
class _Served:
    """A conversation that the engine has served."""

    tokens: Sequence[int]
    blocks: Sequence[bytes]
    namespace: str
    #: How many of its first blocks are published as cached.
    num_cached: int = 0


@dataclass(frozen=True)
class Change:
    """Blocks to add to the index and to remove from it."""

    added: tuple[bytes, ...] = ()
    removed: tuple[bytes, ...] = ()


class PrefixLedger:
    """The ledger of one engine, for the `max_conversations` that it served last. Not thread-safe."""

    def __init__(self, cached_tokens: Callable[[Sequence[int], str], int], max_conversations: int) -> None:
        self._cached_tokens = cached_tokens
        self._max_conversations = max_conversations
        self._served: OrderedDict[bytes, _Served] = OrderedDict()
        #: For each published block, in how many of the conversations it is cached.
        self._num_users: Counter[bytes] = Counter()
        #: Blocks that were added and removed since the last `Change`.
        self._added: set[bytes] = set()
        self._removed: set[bytes] = set()
        self._to_review: list[bytes] = []

    def __len__(self) -> int:
        return len(self._served)

    @property
    def blocks(self) -> tuple[bytes, ...]:
        """All published blocks."""
        return tuple(self._num_users)

    def served(self, tokens: Sequence[int], blocks: Sequence[bytes], namespace: str) -> None:
        """Add a conversation of these tokens and full blocks (at least one)."""
        # A block's hash covers the namespace and all blocks before it, so the last one identifies the conversation.
        known = self._served.pop(blocks[-1], None)
        self._served[blocks[-1]] = served = _Served(tokens, blocks, namespace, known.num_cached if known else 0)
        self._refresh(served)
        while len(self._served) > self._max_conversations:
            _, oldest = self._served.popitem(last=False)
            self._publish(oldest, 0)

    def review(self, num_conversations: int) -> None:
        """Check again how much of the next `num_conversations` conversations is cached, in round-robin order."""
        self._to_review = self._to_review or list(self._served)
        batch, self._to_review = self._to_review[:num_conversations], self._to_review[num_conversations:]
        for name in batch:
            served = self._served.get(name)
            if served is not None:
                self._refresh(served)
                if not served.num_cached:
                    del self._served[name]

    def take_change(self) -> Change:
        """The changes since the last call."""
        change = Change(tuple(self._added), tuple(self._removed))
        self._added.clear()
        self._removed.clear()
        return change

    def _refresh(self, served: _Served) -> None:
        cached, total = self._cached_tokens(served.tokens, served.namespace), len(served.tokens)
        share = 1.0 if cached + NEVER_CACHED_TOKENS >= total else cached / total
        self._publish(served, int(share * len(served.blocks)))

    def _publish(self, served: _Served, num_blocks: int) -> None:
        for block in served.blocks[served.num_cached : num_blocks]:
            self._num_users[block] += 1
            if self._num_users[block] == 1:
                _note(block, self._added, self._removed)
        for block in served.blocks[num_blocks : served.num_cached]:
            self._num_users[block] -= 1
            if not self._num_users[block]:
                del self._num_users[block]
                _note(block, self._removed, self._added)
        served.num_cached = num_blocks


def _note(block: bytes, change: set[bytes], opposite: set[bytes]) -> None:
    """Add the block to the change, or cancel its opposite change, which the index does not have yet."""
    if block in opposite:
        opposite.remove(block)
    else:
        change.add(block)
