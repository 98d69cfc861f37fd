"""Which blocks of the prompts that it served a worker can still say it holds.

Owns the account of what was published: prompts by their tokens, and for each how many of its blocks the engine's cache
covers. An engine counts tokens and the index counts bytes of the conversation, so a prompt that is held in part is
taken to hold the same share of its bytes, rounded down to whole blocks. Pure; knows no engine and no Redis.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from schemas.requests import AcceptedRequest

#: How many tokens of a conversation's prompt its cache never holds though it is held whole: a template ends a prompt
#: with the beginning of the answer to come, and the last token's state is computed anew.
NEVER_HELD_TOKENS = 8


#: Told of each request whose conversation the engine has read, with the answer that it wrote.
Served = Callable[[AcceptedRequest, str], None]


@dataclass
class _Served:
    """A conversation that the engine has read."""

    tokens: Sequence[int]
    blocks: Sequence[bytes]
    namespace: str
    #: Its first blocks that were published.
    num_held: int = 0


@dataclass(frozen=True)
class Change:
    """What the index must be told."""

    held: tuple[bytes, ...] = ()
    gone: tuple[bytes, ...] = ()


class PrefixLedger:
    """The account of one engine, of the `most` conversations that it read last. Not for two threads at once."""

    def __init__(self, held_tokens: Callable[[Sequence[int], str], int], most: int) -> None:
        self._held_tokens = held_tokens
        self._most = most
        self._served: OrderedDict[bytes, _Served] = OrderedDict()
        #: For each published block, how many of the conversations hold it.
        self._holders: Counter[bytes] = Counter()
        #: What became held and what is gone since the last `Change`.
        self._held: set[bytes] = set()
        self._gone: set[bytes] = set()
        self._to_review: list[bytes] = []

    def __len__(self) -> int:
        return len(self._served)

    @property
    def blocks(self) -> tuple[bytes, ...]:
        """All that is published."""
        return tuple(self._holders)

    def served(self, tokens: Sequence[int], blocks: Sequence[bytes], namespace: str) -> None:
        """The engine has read a conversation of these tokens, whose full blocks these are (at least one)."""
        # A block's hash stands for the namespace and all before it, so the last one names the conversation.
        known = self._served.pop(blocks[-1], None)
        self._served[blocks[-1]] = served = _Served(tokens, blocks, namespace, known.num_held if known else 0)
        self._look_at(served)
        while len(self._served) > self._most:
            _, oldest = self._served.popitem(last=False)
            self._hold(oldest, 0)

    def review(self, most: int) -> None:
        """Look again at what the engine holds of so many conversations; all get their turn."""
        self._to_review = self._to_review or list(self._served)
        turn, self._to_review = self._to_review[:most], self._to_review[most:]
        for name in turn:
            served = self._served.get(name)
            if served is not None:
                self._look_at(served)
                if not served.num_held:
                    del self._served[name]

    def take_change(self) -> Change:
        """What the index must be told since this was last asked."""
        change = Change(tuple(self._held), tuple(self._gone))
        self._held.clear()
        self._gone.clear()
        return change

    def _look_at(self, served: _Served) -> None:
        held, whole = self._held_tokens(served.tokens, served.namespace), len(served.tokens)
        share = 1.0 if held + NEVER_HELD_TOKENS >= whole else held / whole
        self._hold(served, int(share * len(served.blocks)))

    def _hold(self, served: _Served, num_blocks: int) -> None:
        for block in served.blocks[served.num_held : num_blocks]:
            self._holders[block] += 1
            if self._holders[block] == 1:
                _move(block, self._gone, self._held)
        for block in served.blocks[num_blocks : served.num_held]:
            self._holders[block] -= 1
            if not self._holders[block]:
                del self._holders[block]
                _move(block, self._held, self._gone)
        served.num_held = num_blocks


def _move(block: bytes, from_set: set[bytes], to_set: set[bytes]) -> None:
    """The block changed sides; if it had changed to the other side since the last `Change`, nothing is to be told."""
    if block in from_set:
        from_set.remove(block)
    else:
        to_set.add(block)
