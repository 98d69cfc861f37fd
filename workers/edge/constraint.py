"""Grammars of answers at the edge: a grammar compiled for one model's tokenizer, and its state along one answer.

Owns what llguidance holds. Knows no llama.cpp and no requests.
"""

import threading
import time
from collections.abc import Callable

import numpy as np
from llguidance import LLMatcher, LLTokenizer

from schemas.requests import Sampling
from workers.edge.token_metrics import Floats
from workers.runtime.constraint_check import MAX_TOKEN_S, ConstraintCheck
from workers.runtime.constraints import Vocabulary, lark_of, limits, reason_of
from workers.runtime.failures import BeyondModel

#: Seconds of processor time that the grammar may take per token; every request in the batch waits for it. A multiple of
#: the limit in the check before, so that a grammar that passed there is not refused here for one slow moment.
MAX_STEP_S = 4 * MAX_TOKEN_S


class GrammarCompiler:
    """Compiles grammars for one model. Thread-safe. `make_tokenizer` is called with the first grammar."""

    def __init__(self, make_tokenizer: Callable[[], LLTokenizer]) -> None:
        self._make_tokenizer = make_tokenizer
        self._making = threading.Lock()
        self._tokenizer: LLTokenizer | None = None
        self._check: ConstraintCheck | None = None

    def compile(self, sampling: Sampling, namespace: str) -> "Grammar | None":
        """The grammar that the answer must match; None where there is none. Raises `BeyondModel`.

        Blocks: milliseconds, and about a second for the first grammar of all and for one that is refused.
        """
        try:
            lark = lark_of(sampling)
            if lark is None:
                return None
            tokenizer, check = self._tools()
            check.check(lark, namespace)
        except ValueError as error:
            option = "grammar" if sampling.json_schema is None else "json_schema"
            raise BeyondModel(f"{option}: {error}") from error
        return Grammar(LLMatcher(tokenizer, lark, log_level=0, limits=limits()), tokenizer)

    def _tools(self) -> tuple[LLTokenizer, ConstraintCheck]:
        with self._making:
            if self._tokenizer is None or self._check is None:
                self._tokenizer = self._make_tokenizer()
                self._check = ConstraintCheck(Vocabulary.of(self._tokenizer))
            return self._tokenizer, self._check

    def close(self) -> None:
        """End the process that checks grammars. Idempotent."""
        with self._making:
            if self._check is not None:
                self._check.close()


class Grammar:
    """The state of one answer's grammar. Not thread-safe.

    Every method may raise `BeyondModel`: a grammar can prove too complex only while the answer is written.
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
