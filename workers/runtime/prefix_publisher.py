"""Publishes once a second to the prefix index which blocks this worker's prefix cache has gained and lost."""

import logging
from collections import deque
from collections.abc import Callable, Collection, Sequence

from redis.exceptions import RedisError

from broker.background import Loop
from broker.prefix_blocks import block_hashes
from broker.prefix_index import SWEEP_PAUSE_S, PrefixIndex
from config.settings import PrefixIndexSettings
from schemas.requests import Message
from workers.runtime.engine import CachedPrefixes
from workers.runtime.failures import RequestRefused
from workers.runtime.prefix_ledger import PrefixLedger

log = logging.getLogger(__name__)

#: Seconds between two updates of the index.
TICK_S = 1.0
#: Conversations that are checked again per tick after an eviction.
REVIEW_BATCH = 200
#: How often all blocks are published again within the lifetime of an entry.
RENEWALS = 3
#: Ticks between two steps of sweeping the index, unless another worker does them.
SWEEP_TICKS = int(SWEEP_PAUSE_S / TICK_S)


class PrefixPublisher:
    """The publisher of one worker. `close` once; `served` from any thread."""

    def __init__(
        self,
        index: PrefixIndex,
        member: str,
        prefixes: CachedPrefixes,
        settings: PrefixIndexSettings,
        living: Callable[[], Collection[str]],
    ) -> None:
        self._index, self._member, self._prefixes, self._living = index, member, prefixes, living
        self._block_bytes = settings.block_bytes
        self._ledger = PrefixLedger(prefixes.cached_prefix_tokens, settings.max_conversations)
        self._ticks_to_renewal = self._renewal_ticks = max(1, int(settings.entry_ttl_s / RENEWALS / TICK_S))
        self._losses = 0
        self._to_review = 0
        self._waiting: deque[tuple[Sequence[Message], str]] = deque(maxlen=settings.max_conversations)
        #: The loop that publishes.
        self.loop = Loop("prefix-publisher", self._tick, every_s=TICK_S)

    def served(self, messages: Sequence[Message], answer: str, namespace: str) -> None:
        """Add a conversation that the engine has served; `answer` may be empty. Does not block."""
        self._waiting.append(((*messages, Message(role="assistant", content=answer)), namespace))

    def close(self) -> None:
        """Stop, and remove all of this worker's blocks from the index."""
        self.loop.close()
        try:
            self._index.update(self._member, (), self._ledger.blocks)
        except RedisError as error:
            log.warning("prefixes_not_withdrawn error=%s", error)

    def _tick(self) -> None:
        """Publish the changes. Those that are lost while Redis is away are repeated by the next renewal."""
        self._add_served()
        self._review()
        self._publish()
        if self._ticks_to_renewal % SWEEP_TICKS == 0:
            self._index.sweep(self._living)

    def _add_served(self) -> None:
        while self._waiting:
            messages, namespace = self._waiting.popleft()
            blocks = block_hashes(
                messages, model=self._prefixes.model_name, namespace=namespace, block_bytes=self._block_bytes
            )
            if not blocks:
                continue
            try:
                self._ledger.served(self._prefixes.prompt_of(messages), blocks, namespace)
            except Exception as error:  # noqa: BLE001 - one bad conversation must not stop the others
                is_expected = isinstance(error, RequestRefused)  # with its answer it has become too long for the model
                level = logging.DEBUG if is_expected else logging.WARNING
                log.log(level, "conversation_not_published blocks=%d error=%r", len(blocks), error)

    def _review(self) -> None:
        losses = self._prefixes.cache_losses
        if losses != self._losses:
            self._losses, self._to_review = losses, len(self._ledger)
        if self._to_review > 0:
            self._ledger.review(REVIEW_BATCH)
            self._to_review -= REVIEW_BATCH

    def _publish(self) -> None:
        change = self._ledger.take_change()
        self._ticks_to_renewal -= 1
        if self._ticks_to_renewal <= 0:
            self._ticks_to_renewal = self._renewal_ticks
            self._index.update(self._member, self._ledger.blocks, change.removed)
        elif change.added or change.removed:
            self._index.update(self._member, change.added, change.removed)
