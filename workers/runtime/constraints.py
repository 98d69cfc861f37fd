"""The form that an answer must have, as both tiers' engines read it: one grammar for llguidance.

Owns how a request's `grammar` or `json_schema` becomes that grammar, and a vocabulary as llguidance takes it. Whether
an engine can bear the grammar is `constraint_check`'s business.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from llguidance import LLParserLimits, LLTokenizer

from schemas.gbnf import HEADER, as_lark
from schemas.json_schema import closed
from schemas.requests import Sampling

#: States that one answer's lexer may have, of 1 to 2 kB each; a request must not take the memory of many.
MAX_LEXER_STATES = 50_000
#: Characters of llguidance's complaint that are passed on: it repeats the grammar.
MAX_REASON_CHARS = 300
#: The key under which a schema can tell llguidance how to read it. A request's own would be silently obeyed, also
#: where it asks for what is no JSON, or for keywords to be ignored: it is always overwritten.
GUIDANCE_KEY = "x-guidance"
#: JSON on one line, at most a space behind a comma or colon: where any white space may stand, small models write
#: nothing else until their answer is full.
ON_ONE_LINE = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}


def lark_of(sampling: Sampling) -> str | None:
    """The grammar in llguidance's dialect of Lark; None where any text will do. Raises `ValueError` for no GBNF.

    vLLM takes it as a `grammar` too, so that both tiers compile the same text and a draft keeps the cloud's form.
    """
    if sampling.json_schema is not None:
        schema = json.dumps({**closed(sampling.json_schema), GUIDANCE_KEY: ON_ONE_LINE})
        return f"{HEADER}\nstart: %json {schema}\n"
    return None if sampling.grammar is None else as_lark(sampling.grammar)


def limits() -> LLParserLimits:
    """What one grammar may cost; llguidance's own limits but for memory."""
    return LLParserLimits(max_lexer_states=MAX_LEXER_STATES, verbose_errors=False)


@dataclass(frozen=True)
class Vocabulary:
    """A model's tokens."""

    #: The bytes of each, in the order of ids; those of a control token are its name.
    tokens: Sequence[bytes]
    #: Control tokens, which no answer's text may lease.
    special: Sequence[int]
    #: Tokens that end an answer, at least one.
    ends: Sequence[int]

    @classmethod
    def of(cls, tokenizer: LLTokenizer) -> Self:
        """The vocabulary of a tokenizer that was made otherwise."""
        ids = range(tokenizer.vocab_size)
        return cls(
            tokens=[tokenizer.decode_bytes([token]) for token in ids],
            special=[token for token in ids if tokenizer.is_special_token(token)],
            ends=tokenizer.eos_tokens,
        )

    def tokenizer(self) -> LLTokenizer:
        """For llguidance; costs a tenth of a second or more."""
        return LLTokenizer(_Tokens(self), eos_token=list(self.ends))  # type: ignore[arg-type] # looks like its own


class _Tokens:
    """What llguidance asks of a tokenizer. It never has to cut text exactly as the model's own does."""

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


def reason_of(complaint: str) -> str:
    """What of llguidance's complaint a user can read: its first line, cut."""
    return complaint.strip().partition("\n")[0][:MAX_REASON_CHARS]


def some_token(mask: bytes, start: int) -> int | None:
    """The first permitted token at or after `start`, or else from the beginning; None where there is none."""
    bits = int.from_bytes(mask, "little")
    rest = bits >> start
    if rest:
        return start + _lowest(rest)
    return _lowest(bits) if bits else None


def _lowest(bits: int) -> int:
    return (bits & -bits).bit_length() - 1
