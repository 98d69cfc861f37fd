"""Reads what vLLM publishes about its KV cache (ZeroMQ, msgpack) into an account of the blocks held.

vLLM sends events within its scheduler's steps only: what an idle engine clears is heard of with its next step.
"""

import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec
import zmq
from vllm.distributed.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, KVEventBatch

from workers.cloud.held_blocks import BlockEvent, Cleared, HeldBlocks, Removed, Stored

#: The stubs of zmq name none of its constants.
_zmq: Any = zmq
#: How often the reading thread looks whether it should end, in milliseconds.
POLL_MS = 200


class KvEventReader:
    """Follows one engine on a thread of its own, from before its start to `close`."""

    def __init__(self, endpoint: str) -> None:
        self._held = HeldBlocks()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._context = _zmq.Context()
        self._socket = self._context.socket(_zmq.SUB)
        self._socket.setsockopt_string(_zmq.SUBSCRIBE, "")
        self._socket.connect(endpoint)
        self._thread = threading.Thread(target=self._read, name="kv-events", daemon=True)
        self._thread.start()

    def prefix_tokens(self, token_ids: Sequence[int]) -> int:
        """See `HeldBlocks`."""
        with self._lock:
            return self._held.prefix_tokens(token_ids)

    @property
    def losses(self) -> int:
        """See `HeldBlocks`."""
        return self._held.losses

    def totals(self) -> tuple[int, int, int]:
        """Blocks held, tokens in them, blocks given up since the start."""
        with self._lock:
            return len(self._held), self._held.tokens, self._held.evictions

    def close(self) -> None:
        """End the thread. Idempotent."""
        self._closing.set()
        self._thread.join()

    def _read(self) -> None:
        decoder = msgspec.msgpack.Decoder(KVEventBatch)
        while not self._closing.is_set():
            if self._socket.poll(POLL_MS):
                _topic, sequence, payload = self._socket.recv_multipart()
                events = list(_translated(decoder.decode(payload).events))
                with self._lock:
                    self._held.apply(int.from_bytes(sequence, "big"), events)
        self._socket.close(linger=0)
        self._context.term()


def _translated(events: Iterable[Any]) -> Iterator[BlockEvent]:
    for event in events:
        match event:
            case BlockStored():
                private = any(keys for keys in event.extra_keys or ())
                hashes, tokens = tuple(event.block_hashes), tuple(event.token_ids)
                yield Stored(hashes, event.parent_block_hash, tokens, event.block_size, private=private)
            case BlockRemoved():
                yield Removed(tuple(event.block_hashes))
            case AllBlocksCleared():
                yield Cleared()
