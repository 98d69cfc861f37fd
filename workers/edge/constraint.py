"""The grammar of an answer at the edge, compiled for the model's tokenizer, and its state along the answer.

Owns what llguidance holds. Knows no llama.cpp and no requests.
"""

import time
from typing import Self

import numpy as np
from llguidance import LLMatcher, LLTokenizer

from workers.edge.token_metrics import Floats
from workers.runtime.constraint_check import MAX_TOKEN_S
from workers.runtime.constraints import limits, reason_of
from workers.runtime.failures import BeyondModel

#: Seconds of processor time that the grammar may take per token; every request in the batch waits for it. A multiple of
#: the limit in the check before, so that a grammar that passed there is not refused here for one slow moment.
MAX_STEP_S = 4 * MAX_TOKEN_S


class Grammar:
    """The state of one answer's grammar. Not thread-safe.

    Every method may raise `BeyondModel`: a grammar can prove too complex only while the answer is written.
    """

    def __init__(self, matcher: LLMatcher, tokenizer: LLTokenizer) -> None:
        self._matcher = matcher
        self._ends = frozenset(tokenizer.eos_tokens)

    @classmethod
    def compiled(cls, lark: str, tokenizer: LLTokenizer) -> Self:
        """The grammar at the beginning of an answer. Blocks for milliseconds."""
        return cls(LLMatcher(tokenizer, lark, log_level=0, limits=limits()), tokenizer)

    def permits(self, token: int) -> bool:
        """Whether the answer may go on with this token."""
        if token in self._ends:
            return bool(self._matcher.is_accepting())
        return not self._matcher.is_stopped() and self._matcher.validate_tokens([token]) == 1

    def mask(self, logits: Floats) -> Floats:
        """A copy of the row with minus infinity for each token that the grammar forbids here."""
        began_s = time.thread_time()
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check(began_s)
        permitted = np.unpackbits(bits, bitorder="little")[: len(logits)].astype(bool)
        if not permitted.any():
            raise BeyondModel("grammar: no token of the model's continues the answer")
        masked: Floats = np.where(permitted, logits, np.float32(-np.inf))
        return masked

    def accept(self, token: int) -> None:
        """Advance past a permitted token."""
        began_s = time.thread_time()
        self._matcher.consume_token(token)
        self._check(began_s)

    def _check(self, began_s: float) -> None:
        if self._matcher.is_error():
            raise BeyondModel(f"grammar: {reason_of(self._matcher.get_error())}")
        if time.thread_time() - began_s > MAX_STEP_S:
            raise BeyondModel(f"grammar: it is too ambiguous: a token takes more than {MAX_STEP_S * 1000:g} ms")
