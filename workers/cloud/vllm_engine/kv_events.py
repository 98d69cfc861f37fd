"""Reads what vLLM publishes about its KV cache (ZeroMQ, msgpack) into a `KVBlockIndex`.

vLLM sends events within its scheduler's steps only: what an idle engine clears is published with its next step.
A message that cannot be read clears the index, which then fills again: a prefix that is wrongly believed to be cached
would send requests to the wrong worker.
"""

import logging
import threading
from collections.abc import Sequence
from typing import Any

import msgspec
import zmq
from vllm.distributed.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, KVEventBatch

from broker.background import Loop
from workers.cloud.kv_block_index import KVBlockIndex

log = logging.getLogger(__name__)

#: The stubs of zmq name none of its constants.
_zmq: Any = zmq
#: How long one poll of the socket may take, in milliseconds; `close` waits for it.
POLL_MS = 200


class KvEventReader:
    """Follows one engine on a thread of its own, from before its start to `close`."""

    def __init__(self, endpoint: str) -> None:
        self._index = KVBlockIndex()
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
            return self._index.prefix_tokens(token_ids, namespace)

    @property
    def losses(self) -> int:
        """See `KVBlockIndex`."""
        return self._index.losses

    def totals(self) -> tuple[int, int, int]:
        """Blocks in the cache, tokens in them, blocks evicted since the start."""
        with self._lock:
            return len(self._index), self._index.tokens, self._index.evictions

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
        """Take one message of three frames: topic, sequence number, events."""
        with self._lock:
            try:
                _topic, sequence, payload = frames
                events = self._decoder.decode(payload).events
                self._index.begin_batch(int.from_bytes(sequence, "big"))
                for event in events:
                    self._apply(event)
            except Exception as error:  # noqa: BLE001 - an unknown kind of event must not end the reader
                log.warning("kv_events_unreadable error=%s", error)
                self._index.clear()

    def _apply(self, event: Any) -> None:
        """Raises `ValueError` for blocks with a wrong number of tokens."""
        match event:
            case BlockStored():
                hashes, tokens, size = event.block_hashes, event.token_ids, event.block_size
                if size < 1 or len(tokens) != size * len(hashes):
                    raise ValueError(f"{len(hashes)} blocks of {size} tokens")
                namespace, private = _namespace(event)
                parent = namespace if event.parent_block_hash is None else event.parent_block_hash
                self._index.store(hashes, parent, tokens, size, private=private)
            case BlockRemoved():
                self._index.remove(event.block_hashes)
            case AllBlocksCleared():
                self._index.clear()


def _namespace(event: BlockStored) -> tuple[str | None, bool]:
    """The namespace of a sequence, given with its first block, and whether the event's blocks are private.

    vLLM makes a request's salt, which is our namespace, part of the hash of its first block only. The event has it
    there as a bare string, like the name of a LoRA adapter; our requests have no other extra keys.
    """
    keys = event.extra_keys or []
    if not any(keys):
        return None, False
    match keys[0]:
        case [str() as salt] if event.parent_block_hash is None and event.lora_name is None and not any(keys[1:]):
            return salt, False
    return None, True
