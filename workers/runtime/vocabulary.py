"""A fingerprint of a vocabulary, which tells whether token ids mean the same in two models.

Pure: each tier passes the token texts of its own engine.
"""

import hashlib
from collections.abc import Iterable

#: Bytes of the digest in the fingerprint: enough to rule out accidental collisions.
FINGERPRINT_BYTES = 16
#: SentencePiece's character for a space; some formats have a plain space in the same token.
SENTENCEPIECE_SPACE = "\u2581"
#: Bytes of the length that precedes each text, so that the same characters split into other tokens differ.
LENGTH_BYTES = 4


def fingerprint(token_texts: Iterable[str]) -> str:
    """Hex digits that are equal for two vocabularies exactly if every token id has the same text in both.

    `token_texts`: the texts as they are in the vocabulary (`Ġthe`, `▁the`, `<|im_end|>`), in the order of token ids,
    including added and control tokens.
    """
    digest = hashlib.sha256()
    for text in token_texts:
        raw = text.replace(SENTENCEPIECE_SPACE, " ").encode("utf-8", errors="surrogatepass")
        digest.update(len(raw).to_bytes(LENGTH_BYTES, "little"))
        digest.update(raw)
    return digest.digest()[:FINGERPRINT_BYTES].hex()
