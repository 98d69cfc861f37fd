"""Checks a request's options for one vLLM engine, before they reach vLLM's process. Knows no request in flight."""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any

from llguidance import LLMatcher, LLTokenizer
from vllm.v1.structured_output.backend_guidance import GuidanceBackend

from schemas.policy import Tier
from schemas.requests import Sampling
from workers.runtime.constraint_check import GrammarChecker
from workers.runtime.constraints import check_biases
from workers.runtime.failures import BeyondModel


class Options:
    """Checks options for one model. Safe on any thread."""

    def __init__(self, tokenizer: Any, num_tokens: int) -> None:
        #: The width of the model's logits.
        self._num_tokens = num_tokens
        self._grammars = GrammarChecker(partial(_grammar_tokenizer, tokenizer, num_tokens))

    async def check(self, sampling: Sampling, namespace: str) -> tuple[str, LLTokenizer] | None:
        """The grammar that the answer must match, and the tokenizer for `check_answer`; None without a grammar.

        Raises `BeyondModel` for an option that vLLM cannot honour, or that would hurt it.
        """
        check_biases(sampling.logit_bias, self._num_tokens, Tier.CLOUD)
        if sampling.grammar is None and sampling.json_schema is None:
            return None
        return await asyncio.to_thread(self._grammars.grammar_of, sampling, namespace)

    def close(self) -> None:
        """End the child process that tries out grammars. Idempotent."""
        self._grammars.close()


async def check_answer(lark: str, tokenizer: LLTokenizer, token_ids: Sequence[int]) -> None:
    """Raise `BeyondModel` for an answer that ended before its grammar was satisfied.

    vLLM lets the model end its answer where the grammar became too complex to go on with.
    """
    if not await asyncio.to_thread(_is_complete, lark, tokenizer, token_ids):
        raise BeyondModel("the grammar became too complex for vLLM before the answer was complete")


def _is_complete(lark: str, tokenizer: LLTokenizer, token_ids: Sequence[int]) -> bool:
    text = [token for token in token_ids if token not in tokenizer.eos_tokens]
    matcher = LLMatcher(tokenizer, lark, log_level=0)
    return matcher.try_consume_tokens(text) == len(text) and bool(matcher.is_accepting())


def _grammar_tokenizer(tokenizer: Any, num_tokens: int) -> LLTokenizer:
    """Llguidance's tokenizer for the model, built as vLLM builds its own."""
    if not GuidanceBackend.is_tokenizer_supported(tokenizer):
        raise ValueError("this model's tokenizer does not support grammars")
    built: LLTokenizer = GuidanceBackend._build_ll_tokenizer(tokenizer, num_tokens)  # noqa: SLF001 - the same
    return built
