"""Tells the prefix index what this worker's cache holds, and what it no longer does, a second's worth at a time."""

import logging
from collections import deque
from collections.abc import Callable, Collection, Sequence

from redis.exceptions import RedisError

from broker.background import Loop
from broker.prefix_blocks import block_hashes
from broker.prefix_index import PrefixIndex
from config.settings import PrefixIndexSettings
from schemas.requests import Message
from workers.runtime.engine import CachedPrefixes
from workers.runtime.failures import RequestRefused
from workers.runtime.prefix_ledger import PrefixLedger

log = logging.getLogger(__name__)

#: Seconds between two messages to the index.
TICK_S = 1.0
#: Conversations whose place in the cache is looked at again in one tick, after something was evicted.
REVIEW_BATCH = 200
#: What is held is published anew this often within the lifetime of an entry.
RENEWALS = 3


class PrefixPublisher:
    """One worker's. `close` once; `served` from any thread."""

    def __init__(
        self,
        index: PrefixIndex,
        member: str,
        holder: CachedPrefixes,
        settings: PrefixIndexSettings,
        living: Callable[[], Collection[str]],
    ) -> None:
        self._index, self._member, self._holder, self._living = index, member, holder, living
        self._block_bytes = settings.block_bytes
        self._account = PrefixLedger(holder.cached_prefix_tokens, settings.max_conversations)
        self._ticks_to_renewal = self._renewal_ticks = max(1, int(settings.entry_ttl_s / RENEWALS / TICK_S))
        self._losses = 0
        self._to_review = 0
        self._waiting: deque[tuple[Sequence[Message], str]] = deque(maxlen=settings.max_conversations)
        #: Publishes, once it is started.
        self.loop = Loop("prefix-publisher", self._tick, every_s=TICK_S)

    def served(self, messages: Sequence[Message], answer: str, namespace: str) -> None:
        """The engine has read these messages and written this answer (perhaps an empty one) for the namespace.

        Does not block.
        """
        self._waiting.append(((*messages, Message(role="assistant", content=answer)), namespace))

    def close(self) -> None:
        """Withdraw everything and stop."""
        self.loop.close()
        try:
            self._index.update(self._member, (), self._account.blocks)
        except RedisError as error:
            log.warning("prefixes_not_withdrawn error=%s", error)

    def _tick(self) -> None:
        """A second's worth. Where Redis is away, what was not published is told with the next renewal."""
        self._take_in()
        self._review()
        self._publish()
        self._index.sweep(self._living)

    def _take_in(self) -> None:
        while self._waiting:
            messages, namespace = self._waiting.popleft()
            blocks = block_hashes(
                messages, model=self._holder.model_name, namespace=namespace, block_bytes=self._block_bytes
            )
            if not blocks:
                continue
            try:
                self._account.served(self._holder.prompt_of(messages), blocks, namespace)
            except Exception as error:  # noqa: BLE001 - one conversation that cannot be read must not cost all others
                is_expected = isinstance(error, RequestRefused)  # with its answer it is too long now
                level = logging.DEBUG if is_expected else logging.WARNING
                log.log(level, "conversation_not_published blocks=%d error=%r", len(blocks), error)

    def _review(self) -> None:
        losses = self._holder.cache_losses
        if losses != self._losses:
            self._losses, self._to_review = losses, len(self._account)
        if self._to_review > 0:
            self._account.review(REVIEW_BATCH)
            self._to_review -= REVIEW_BATCH

    def _publish(self) -> None:
        change = self._account.take_change()
        self._ticks_to_renewal -= 1
        if self._ticks_to_renewal <= 0:
            self._ticks_to_renewal = self._renewal_ticks
            self._index.update(self._member, self._account.blocks, change.gone)
        elif change.held or change.gone:
            self._index.update(self._member, change.held, change.gone)
