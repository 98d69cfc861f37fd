"""What a token adds to a text, in bytes, read off the vocabulary's own spelling of it (`Ġthe`, `▁the`, `<0xE2>`).

An engine's decoded token is a string, in which a part of a character is U+FFFD; this keeps its bytes. Pure: how a
vocabulary spells its tokens is read from the state of its decoder, as Hugging Face's `tokenizer.json` has it.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

#: How a vocabulary with byte fallback spells a byte that has no token of its own.
BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
#: Code points from here on represent the bytes that have no printable character of their own (GPT-2's rule).
FIRST_SUBSTITUTE = 256


def _printable() -> Iterator[int]:
    """The bytes that byte-level vocabularies spell with the character of the same number."""
    for first, last in (("!", "~"), ("¡", "¬"), ("®", "ÿ")):
        yield from range(ord(first), ord(last) + 1)


def _byte_of_character() -> dict[str, int]:
    table = {chr(byte): byte for byte in _printable()}
    others = (byte for byte in range(256) if chr(byte) not in table)
    return table | {chr(FIRST_SUBSTITUTE + place): byte for place, byte in enumerate(others)}


#: The byte that each character of a byte-level spelling represents.
BYTE_OF_CHARACTER = _byte_of_character()


@dataclass(frozen=True)
class Spelling:
    """How a vocabulary spells its tokens."""

    #: Each character represents a byte.
    byte_level: bool = False
    #: `<0xE2>` represents a byte.
    byte_fallback: bool = False
    #: Replacements in order: `▁` becomes a space.
    replaced: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of_decoder(cls, state: Mapping[str, Any]) -> "Spelling":
        """From a decoder of `tokenizer.json`. What it does to the whole text (`Strip`) is left out."""
        steps = state.get("decoders", ()) if state.get("type") == "Sequence" else (state,)
        kinds = {step.get("type") for step in steps}
        replaced = []
        for step in steps:
            if step.get("type") == "Replace" and "String" in step.get("pattern", {}):
                replaced.append((step["pattern"]["String"], step["content"]))
            elif step.get("type") == "Metaspace":
                replaced.append((step["replacement"], " "))
        return cls("ByteLevel" in kinds, "ByteFallback" in kinds, tuple(replaced))

    def bytes_of(self, token: str) -> bytes:
        """The bytes of a token, given as the vocabulary spells it. The caller handles control tokens."""
        if self.byte_level:
            if BYTE_OF_CHARACTER.keys() >= set(token):
                return bytes(BYTE_OF_CHARACTER[character] for character in token)
            return token.encode()  # an added token, which is spelled as it is read
        if self.byte_fallback and (byte := BYTE_TOKEN.fullmatch(token)):
            return bytes.fromhex(byte[1])
        for old, new in self.replaced:
            token = token.replace(old, new)
        return token.encode()
