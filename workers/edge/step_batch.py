"""The arrays of a `llama_batch`, in memory of ours so that they are filled by slices instead of field by field.

Knows the layout of the C structure, which `workers.edge.llama` gives it, and nothing else of llama.cpp.
"""

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from workers.edge.step_protocol import Feed

#: Bytes of a sequence id, a 32-bit integer in C.
SEQUENCE_ID_BYTES = 4


class StepBatch:
    """Room for the tokens of one step. `handle` is the C structure, valid as long as this object."""

    def __init__(self, handle: Any, num_tokens: int) -> None:
        self._token = np.zeros(num_tokens, np.int32)
        self._position = np.zeros(num_tokens, np.int32)
        self._one_sequence_each = np.ones(num_tokens, np.int32)
        self._sequence = np.zeros(num_tokens, np.int32)
        self._wanted = np.zeros(num_tokens, np.int8)
        offsets = SEQUENCE_ID_BYTES * np.arange(num_tokens, dtype=np.uintp)
        self._sequence_addresses = self._sequence.ctypes.data + offsets
        self.handle = handle
        integers = ctypes.POINTER(ctypes.c_int32)
        handle.token = self._token.ctypes.data_as(integers)
        handle.pos = self._position.ctypes.data_as(integers)
        handle.n_seq_id = self._one_sequence_each.ctypes.data_as(integers)
        handle.seq_id = ctypes.cast(self._sequence_addresses.ctypes.data, ctypes.POINTER(integers))
        handle.logits = self._wanted.ctypes.data_as(ctypes.POINTER(ctypes.c_int8))

    def fill(self, feeds: Sequence[Feed]) -> int:
        """Take over the feeds; the number of rows of logits that they ask for."""
        row = num_outputs = 0
        for feed in feeds:
            end = row + len(feed.tokens)
            self._token[row:end] = feed.tokens
            self._position[row:end] = range(feed.start, feed.start + len(feed.tokens))
            self._sequence[row:end] = feed.sequence
            self._wanted[row:end] = 0
            self._wanted[end - 1] = feed.wants_logits
            num_outputs += feed.wants_logits
            row = end
        self.handle.n_tokens = row
        return num_outputs
