"""Constrained answers on both tiers: one grammar for llguidance, made from a request's `grammar` or `json_schema`.

Owns that conversion, and a vocabulary in the form that llguidance takes. `constraint_check` finds out whether an
engine can handle a grammar.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from llguidance import LLParserLimits, LLTokenizer

from schemas.gbnf import HEADER, as_lark
from schemas.json_schema import closed
from schemas.policy import Tier
from schemas.requests import Sampling
from workers.runtime.failures import BeyondModel

#: The most states of one answer's lexer, of 1 to 2 kB each: limits the memory of one request.
MAX_LEXER_STATES = 50_000
#: The most characters of llguidance's error message to pass on, since it repeats the grammar.
MAX_REASON_CHARS = 300
#: The key under which a schema can configure llguidance. Always overwritten: a user's options could allow output that
#: is not JSON, or make llguidance ignore keywords.
GUIDANCE_KEY = "x-guidance"
#: JSON on one line, with at most one space after a comma or colon. If any white space is allowed, small models tend to
#: write nothing else until the length limit.
ON_ONE_LINE = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}


def lark_of(sampling: Sampling) -> str | None:
    """The grammar in llguidance's dialect of Lark; None without a constraint. Raises `ValueError` for invalid GBNF.

    vLLM takes it as a `grammar` too. Both tiers compile the same text, so that a draft satisfies the cloud's grammar.
    """
    if sampling.json_schema is not None:
        schema = json.dumps({**closed(sampling.json_schema), GUIDANCE_KEY: ON_ONE_LINE})
        return f"{HEADER}\nstart: %json {schema}\n"
    return None if sampling.grammar is None else as_lark(sampling.grammar)


def limits() -> LLParserLimits:
    """Limits on the cost of one grammar: llguidance's defaults, except for memory."""
    return LLParserLimits(max_lexer_states=MAX_LEXER_STATES, verbose_errors=False)


def check_biases(biases: Mapping[int, float], num_tokens: int, tier: Tier) -> None:
    """Raise `BeyondModel` for a bias on a token that the tier's model does not have."""
    unknown = [token for token in biases if not 0 <= token < num_tokens]
    if unknown:
        raise BeyondModel(f"logit_bias: the {tier} model has no token {unknown[0]}; its ids are below {num_tokens}")


@dataclass(frozen=True)
class Vocabulary:
    """A model's tokens."""

    #: The bytes of each token, in the order of ids; for a control token, its name.
    tokens: Sequence[bytes]
    #: Control tokens, which are never part of an answer's text.
    special: Sequence[int]
    #: Tokens that end an answer, at least one.
    ends: Sequence[int]

    @classmethod
    def of(cls, tokenizer: LLTokenizer) -> Self:
        """The vocabulary of an existing tokenizer."""
        ids = range(tokenizer.vocab_size)
        return cls(
            tokens=[tokenizer.decode_bytes([token]) for token in ids],
            special=[token for token in ids if tokenizer.is_special_token(token)],
            ends=tokenizer.eos_tokens,
        )

    def tokenizer(self) -> LLTokenizer:
        """A tokenizer for llguidance; takes a tenth of a second or more to build."""
        return LLTokenizer(_Tokens(self), eos_token=list(self.ends))  # type: ignore[arg-type] # duck-typed


class _Tokens:
    """The interface that llguidance expects. Tokenizes text into single bytes, which llguidance accepts."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.tokens = list(vocabulary.tokens)
        self.special_token_ids = list(vocabulary.special)
        self.eos_token_id = vocabulary.ends[0]
        self._of_byte: dict[int, int] = {
            token[0]: place for place, token in reversed(list(enumerate(self.tokens))) if len(token) == 1
        }

    def __call__(self, text: bytes | str) -> list[int]:
        raw = text.encode() if isinstance(text, str) else text
        return [self._of_byte.get(byte, self.eos_token_id) for byte in raw]


def reason_of(message: str) -> str:
    """The part of llguidance's error message that helps a user: its first line, shortened."""
    return message.strip().partition("\n")[0][:MAX_REASON_CHARS]


def some_token(mask: bytes, start: int) -> int | None:
    """The first permitted token at or after `start`, or else the first of all; None if no token is permitted."""
    bits = int.from_bytes(mask, "little")
    lowest = (bits >> start << start) or bits
    return (lowest & -lowest).bit_length() - 1 if lowest else None
