"""Checks a request's options for one vLLM engine, before they reach vLLM's process.

Owns the tokenizer that the check of grammars needs. Knows no request in flight.
"""

import asyncio
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from llguidance import LLMatcher, LLTokenizer
from vllm.v1.structured_output.backend_guidance import GuidanceBackend

from schemas.requests import Sampling
from workers.runtime.constraint_check import ConstraintCheck
from workers.runtime.constraints import Vocabulary, lark_of
from workers.runtime.failures import BeyondModel


class Options:
    """Checks options for one model. Safe on any thread."""

    def __init__(self, tokenizer: Any, num_tokens: int) -> None:
        self._tokenizer = tokenizer
        #: The width of the model's logits.
        self._num_tokens = num_tokens
        self._lock = threading.Lock()
        self._for_grammars: tuple[LLTokenizer, ConstraintCheck] | None = None

    async def check(self, sampling: Sampling, namespace: str) -> str | None:
        """The grammar that the answer must match (`constraints.lark_of`), tried out in a child process.

        Raises `BeyondModel` for an option that vLLM cannot honour, or that would hurt it.
        """
        self._check_biases(sampling.logit_bias)
        if sampling.grammar is None and sampling.json_schema is None:
            return None
        try:
            return await asyncio.to_thread(self._checked_grammar, sampling, namespace)
        except ValueError as error:
            field = "grammar" if sampling.json_schema is None else "json_schema"
            raise BeyondModel(f"{field}: {error}") from error

    async def check_answer(self, lark: str, token_ids: Sequence[int]) -> None:
        """Raise `BeyondModel` for an answer that ended before its grammar was satisfied.

        vLLM lets the model end its answer where the grammar became too complex to go on with.
        """
        if not await asyncio.to_thread(self._is_complete, lark, token_ids):
            raise BeyondModel("the grammar became too complex for vLLM before the answer was complete")

    def close(self) -> None:
        """End the child process that tries out grammars. Idempotent."""
        with self._lock:
            if self._for_grammars is not None:
                self._for_grammars[1].close()

    def _check_biases(self, biases: Mapping[int, float]) -> None:
        unknown = [token for token in biases if not 0 <= token < self._num_tokens]
        if unknown:
            reason = f"the cloud model has no token {unknown[0]}; its ids are below {self._num_tokens}"
            raise BeyondModel(f"logit_bias: {reason}")

    def _checked_grammar(self, sampling: Sampling, namespace: str) -> str | None:
        lark = lark_of(sampling)
        if lark is not None:
            self._grammar_tools()[1].check(lark, namespace)
        return lark

    def _is_complete(self, lark: str, token_ids: Sequence[int]) -> bool:
        tokenizer, _ = self._grammar_tools()
        text = [token for token in token_ids if token not in tokenizer.eos_tokens]
        matcher = LLMatcher(tokenizer, lark, log_level=0)
        return matcher.try_consume_tokens(text) == len(text) and bool(matcher.is_accepting())

    def _grammar_tools(self) -> tuple[LLTokenizer, ConstraintCheck]:
        """What only requests with a grammar need, built for the first one. Raises `ValueError` if that fails."""
        with self._lock:
            if self._for_grammars is None:
                if not GuidanceBackend.is_tokenizer_supported(self._tokenizer):
                    raise ValueError("this model's tokenizer does not support grammars")
                tokenizer = GuidanceBackend._build_ll_tokenizer(self._tokenizer, self._num_tokens)  # noqa: SLF001 - the same
                self._for_grammars = (tokenizer, ConstraintCheck(Vocabulary.of(tokenizer)))
            return self._for_grammars
