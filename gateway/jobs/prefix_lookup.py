"""Which live workers hold the beginning of a conversation in their caches, as the prefix index tells it.

For one cache namespace at a time: what others have sent cannot be asked for.
"""

from collections import defaultdict
from collections.abc import Sequence

from broker.prefix_blocks import block_hashes, canonical_bytes
from broker.prefix_index import PrefixIndex, member_name
from broker.presence import Presence
from schemas.jobs import HolderReport, PrefixHolding
from schemas.requests import Message
from schemas.workers import WorkerReport


class PrefixLookup:
    """Asks the index, and leaves out whoever is not alive."""

    def __init__(self, index: PrefixIndex, presence: Presence, block_bytes: int) -> None:
        self._index, self._presence, self._block_bytes = index, presence, block_bytes

    def of(self, messages: Sequence[Message], namespace: str) -> HolderReport:
        """Every live worker that holds at least one block for the namespace, the longest first."""
        workers: defaultdict[str, dict[str, WorkerReport]] = defaultdict(dict)
        for report in self._presence.live():
            workers[report.model][member_name(report.worker_id, report.epoch)] = report
        holders = []
        for model, alive in workers.items():
            blocks = block_hashes(messages, model=model, namespace=namespace, block_bytes=self._block_bytes)
            for member, length in self._index.look_up(blocks).items():
                if member in alive:
                    worker, held_bytes = alive[member], length * self._block_bytes
                    holders.append(
                        PrefixHolding(worker=worker.worker_id, tier=worker.tier, model=model, held_bytes=held_bytes)
                    )
        return HolderReport(
            prompt_bytes=len(canonical_bytes(messages)),
            block_bytes=self._block_bytes,
            holders=tuple(sorted(holders, key=lambda holder: (-holder.held_bytes, holder.worker))),
        )
