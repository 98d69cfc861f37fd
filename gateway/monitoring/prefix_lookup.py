"""Which live workers have the beginning of a conversation in their KV caches, according to the prefix index.

It looks in one cache namespace, so that nobody can find out what others have sent.
"""

from collections import defaultdict
from collections.abc import Sequence

from broker.prefix_blocks import block_hashes, canonical_bytes
from broker.prefix_index import PrefixIndex, member_name
from broker.presence import Presence
from schemas.jobs import CachedPrefix, CachedPrefixReport
from schemas.requests import Message
from schemas.workers import WorkerReport


class PrefixLookup:
    """Looks prefixes up in the index, and leaves out workers that are not alive."""

    def __init__(self, index: PrefixIndex, presence: Presence, block_bytes: int) -> None:
        self._index, self._presence, self._block_bytes = index, presence, block_bytes

    def find(self, messages: Sequence[Message], namespace: str) -> CachedPrefixReport:
        """Every live worker that has at least one block cached in the namespace, the longest prefix first."""
        workers: defaultdict[str, dict[str, WorkerReport]] = defaultdict(dict)
        for report in self._presence.live():
            workers[report.model][member_name(report.worker_id, report.epoch)] = report
        found = []
        for model, alive in workers.items():
            blocks = block_hashes(messages, model=model, namespace=namespace, block_bytes=self._block_bytes)
            for member, num_blocks in self._index.look_up(blocks).items():
                if (worker := alive.get(member)) is not None:
                    num_bytes = num_blocks * self._block_bytes
                    found.append(
                        CachedPrefix(worker=worker.worker_id, tier=worker.tier, model=model, held_bytes=num_bytes)
                    )
        return CachedPrefixReport(
            prompt_bytes=len(canonical_bytes(messages)),
            block_bytes=self._block_bytes,
            holders=tuple(sorted(found, key=lambda prefix: (-prefix.held_bytes, prefix.worker))),
        )
