"""Publishes to the prefix index, once a second, what this worker's prefix cache has gained and lost."""

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

#: Seconds between two messages to the index.
TICK_S = 1.0
#: Conversations that are checked again in one tick, after something was evicted.
REVIEW_BATCH = 200
#: Everything is published anew this often within the lifetime of an entry.
RENEWALS = 3
#: Ticks between two offers of this worker to sweep the index.
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
        #: Publishes, once it is started.
        self.loop = Loop("prefix-publisher", self._tick, every_s=TICK_S)

    def served(self, messages: Sequence[Message], answer: str, namespace: str) -> None:
        """The engine has read these messages and written this answer (perhaps empty). Does not block."""
        self._waiting.append(((*messages, Message(role="assistant", content=answer)), namespace))

    def close(self) -> None:
        """Withdraw everything and stop."""
        self.loop.close()
        try:
            self._index.update(self._member, (), self._ledger.blocks)
        except RedisError as error:
            log.warning("prefixes_not_withdrawn error=%s", error)

    def _tick(self) -> None:
        """Publish the changes. What Redis does not get while it is away follows with the next renewal."""
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
                is_expected = isinstance(error, RequestRefused)  # with its answer it has become too long
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
