"""Grammars of answers at the edge: one model's tokenizer for llguidance, and where each answer stands in its grammar.

Owns what llguidance holds. Knows no request in flight but the one whose tokens it is told.
"""

import threading
import time

import numpy as np
from llguidance import LLMatcher, LLTokenizer

from schemas.requests import Sampling
from workers.edge.llama import Llama
from workers.edge.token_metrics import Floats
from workers.runtime.constraint_check import MAX_TOKEN_S, ConstraintCheck
from workers.runtime.constraints import Vocabulary, lark_of, limits, reason_of
from workers.runtime.failures import BeyondModel

#: Seconds of processor time after which one token's turn is too long; all others wait for it. A multiple of what a
#: grammar may take when it is tried out, so that what has passed there is not refused for a slow moment here.
MAX_STEP_S = 4 * MAX_TOKEN_S


class Constraints:
    """Makes grammars for one model. Safe on any thread."""

    def __init__(self, model: Llama) -> None:
        self._model = model
        self._making = threading.Lock()
        self._tokenizer: LLTokenizer | None = None
        self._check: ConstraintCheck | None = None

    def of(self, sampling: Sampling, namespace: str) -> "Grammar | None":
        """The form that the answer must have, tried out before; None where any will do. Raises `BeyondModel`.

        Blocks: milliseconds, and about a second for the first grammar of all and for one that is refused.
        """
        try:
            lark = lark_of(sampling)
            if lark is None:
                return None
            tokenizer, check = self._made()
            check.check(lark, namespace)
        except ValueError as error:
            raise BeyondModel(f"{_field(sampling)}: {error}") from error
        return Grammar(LLMatcher(tokenizer, lark, log_level=0, limits=limits()), tokenizer)

    def _made(self) -> tuple[LLTokenizer, ConstraintCheck]:
        """What only requests with a grammar need, made with the first of them."""
        with self._making:
            if self._tokenizer is None or self._check is None:
                self._tokenizer = self._model.constraint_tokenizer()
                self._check = ConstraintCheck(Vocabulary.of(self._tokenizer))
            return self._tokenizer, self._check

    def close(self) -> None:
        """End the process that tries grammars out. Idempotent."""
        with self._making:
            if self._check is not None:
                self._check.close()


class Grammar:
    """Where one answer stands in its grammar. Not for two threads at once.

    Raises `BeyondModel` where the grammar turns out to be too complex for what was written.
    """

    def __init__(self, matcher: LLMatcher, tokenizer: LLTokenizer) -> None:
        self._matcher = matcher
        self._ends = frozenset(tokenizer.eos_tokens)

    def permits(self, token: int) -> bool:
        """Whether the answer may go on with this token."""
        if token in self._ends:
            return bool(self._matcher.is_accepting())
        return not self._matcher.is_stopped() and self._matcher.validate_tokens([token]) == 1

    def mask(self, logits: Floats) -> Floats:
        """The row with minus infinity for each token that the grammar forbids here."""
        began_s = time.thread_time()
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check(began_s)
        permitted = np.unpackbits(bits, bitorder="little")[: len(logits)].astype(bool)
        if not permitted.any():
            raise BeyondModel("grammar: no token of the model's continues the answer")
        masked: Floats = np.where(permitted, logits, np.float32(-np.inf))
        return masked

    def accept(self, token: int) -> None:
        """Go on past a token that `permits` allows."""
        began_s = time.thread_time()
        self._matcher.consume_token(token)
        self._check(began_s)

    def _check(self, began_s: float) -> None:
        if self._matcher.is_error():
            raise BeyondModel(f"grammar: {reason_of(self._matcher.get_error())}")
        if time.thread_time() - began_s > MAX_STEP_S:
            raise BeyondModel(f"grammar: it is too ambiguous: a token takes more than {MAX_STEP_S * 1000:g} ms")


def _field(sampling: Sampling) -> str:
    return "grammar" if sampling.json_schema is None else "json_schema"
