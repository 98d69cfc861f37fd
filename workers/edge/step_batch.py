"""The arrays of a `llama_batch`, in numpy memory, so that they are filled by slices instead of field by field.

Knows the layout of the C structure, which `workers.edge.llama` passes in, and nothing else of llama.cpp.
"""

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

#: Bytes of a sequence id, a 32-bit integer in C.
SEQUENCE_ID_BYTES = 4


class TokenChunk(NamedTuple):
    """Consecutive tokens of one sequence in a step, at positions `start` and up: a part of its prompt, or one token."""

    sequence_id: int
    start: int
    tokens: Sequence[int]
    #: Whether the step returns the logits after the last of them.
    wants_logits: bool


class StepBatch:
    """Room for the tokens of one step. `handle` is the C structure, valid as long as this object."""

    def __init__(self, handle: Any, num_tokens: int) -> None:
        self._tokens, self._positions, self._sequence_ids = (np.zeros(num_tokens, np.int32) for _ in range(3))
        self._sequences_per_token = np.ones(num_tokens, np.int32)
        self._wants_logits = np.zeros(num_tokens, np.int8)
        offsets = SEQUENCE_ID_BYTES * np.arange(num_tokens, dtype=np.uintp)
        self._sequence_id_addresses = self._sequence_ids.ctypes.data + offsets
        self.handle = handle
        integers = ctypes.POINTER(ctypes.c_int32)
        handle.token = self._tokens.ctypes.data_as(integers)
        handle.pos = self._positions.ctypes.data_as(integers)
        handle.n_seq_id = self._sequences_per_token.ctypes.data_as(integers)
        handle.seq_id = ctypes.cast(self._sequence_id_addresses.ctypes.data, ctypes.POINTER(integers))
        handle.logits = self._wants_logits.ctypes.data_as(ctypes.POINTER(ctypes.c_int8))

    def fill(self, chunks: Sequence[TokenChunk]) -> int:
        """Take the chunks in; returns the number of rows of logits that they ask for."""
        begin = num_outputs = 0
        for sequence_id, start, tokens, wants_logits in chunks:
            end = begin + len(tokens)
            self._tokens[begin:end] = tokens
            self._positions[begin:end] = range(start, start + len(tokens))
            self._sequence_ids[begin:end] = sequence_id
            self._wants_logits[begin:end] = 0
            self._wants_logits[end - 1] = wants_logits
            num_outputs += wants_logits
            begin = end
        self.handle.n_tokens = begin
        return num_outputs
