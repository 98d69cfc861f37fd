"""Reads what vLLM publishes about its KV cache (ZeroMQ, msgpack) into an account of the blocks held.

vLLM sends events within its scheduler's steps only: what an idle engine clears is heard of with its next step.
What cannot be read voids the account, which then fills again: a prefix that is believed held and is not costs a
request its best worker.
"""

import logging
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec
import zmq
from vllm.distributed.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, KVEventBatch

from broker.background import Loop
from workers.cloud.kv_block_index import BlockEvent, Cleared, KVBlockIndex, Removed, Stored

log = logging.getLogger(__name__)

#: The stubs of zmq name none of its constants.
_zmq: Any = zmq
#: How often the reading thread looks whether it should end, in milliseconds.
POLL_MS = 200


class KvEventReader:
    """Follows one engine on a thread of its own, from before its start to `close`."""

    def __init__(self, endpoint: str) -> None:
        self._held = KVBlockIndex()
        self._lock = threading.Lock()
        self._decoder = msgspec.msgpack.Decoder(KVEventBatch)
        self._context = _zmq.Context()
        self._socket = self._context.socket(_zmq.SUB)
        self._socket.setsockopt_string(_zmq.SUBSCRIBE, "")
        self._socket.connect(endpoint)
        self._loop = Loop("kv-events", self._read, every_s=0.0)
        self._loop.start()

    def prefix_tokens(self, token_ids: Sequence[int], namespace: str) -> int:
        """See `KVBlockIndex`."""
        with self._lock:
            return self._held.prefix_tokens(token_ids, namespace)

    @property
    def losses(self) -> int:
        """See `KVBlockIndex`."""
        return self._held.losses

    def totals(self) -> tuple[int, int, int]:
        """Blocks held, tokens in them, blocks given up since the start."""
        with self._lock:
            return len(self._held), self._held.tokens, self._held.evictions

    def close(self) -> None:
        """End the thread. Idempotent."""
        self._loop.close()
        if not self._socket.closed:
            self._socket.close(linger=0)
            self._context.term()

    def _read(self) -> None:
        if self._socket.poll(POLL_MS):
            self._take(self._socket.recv_multipart())

    def _take(self, frames: Sequence[bytes]) -> None:
        """One message, of three frames: topic, number, events."""
        try:
            _topic, sequence, payload = frames
            events = list(_translated(self._decoder.decode(payload).events))
        except Exception as error:  # noqa: BLE001 - an event of a kind not known here must not end the account
            log.warning("kv_events_unreadable error=%s", error)
            with self._lock:
                self._held.void()
        else:
            with self._lock:
                self._held.apply(int.from_bytes(sequence, "big"), events)


def _translated(events: Iterable[Any]) -> Iterator[BlockEvent]:
    """Raises ValueError for blocks that do not hold as many tokens as they must."""
    for event in events:
        match event:
            case BlockStored():
                if event.block_size < 1 or len(event.token_ids) != event.block_size * len(event.block_hashes):
                    raise ValueError(f"{len(event.block_hashes)} blocks of {event.block_size} tokens")
                hashes, tokens = tuple(event.block_hashes), tuple(event.token_ids)
                namespace, private = _readers(event)
                yield Stored(hashes, event.parent_block_hash, tokens, event.block_size, namespace, private)
            case BlockRemoved():
                yield Removed(tuple(event.block_hashes))
            case AllBlocksCleared():
                yield Cleared()


def _readers(event: BlockStored) -> tuple[str | None, bool]:
    """The namespace whose requests can read the blocks, where this event tells it; and `Stored.private`.

    vLLM makes a request's salt, which is our namespace, part of its first block's hash alone. In an event it is a bare
    string there, as the name of a LoRA adapter would be; anything else is of a kind that no request of ours has.
    """
    keys = event.extra_keys or []
    if not any(keys):
        return None, False
    match keys[0]:
        case [str() as salt] if event.parent_block_hash is None and event.lora_name is None and not any(keys[1:]):
            return salt, False
    return None, True
