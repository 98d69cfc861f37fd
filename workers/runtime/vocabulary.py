"""A fingerprint of a vocabulary, which shows whether token ids mean the same in two models.

Pure: each tier passes the token texts of its own engine.
"""

import hashlib
from collections.abc import Iterable

#: Bytes of the digest in the fingerprint: enough to rule out a collision by chance.
FINGERPRINT_BYTES = 16
#: How SentencePiece spells a space; some formats spell the same token with a plain one.
SENTENCEPIECE_SPACE = "\u2581"
#: Bytes of the length in front of each text, so that moving a border between two tokens changes the fingerprint.
LENGTH_BYTES = 4


def fingerprint(token_texts: Iterable[str]) -> str:
    """Hex digits that are equal for two vocabularies exactly if every token id means the same text in both.

    `token_texts` are the texts as the vocabulary itself spells them (`Ġthe`, `▁the`, `<|im_end|>`), in the order of
    token ids, added and control tokens included.
    """
    digest = hashlib.sha256()
    for text in token_texts:
        raw = text.replace(SENTENCEPIECE_SPACE, " ").encode("utf-8", errors="surrogatepass")
        digest.update(len(raw).to_bytes(LENGTH_BYTES, "little"))
        digest.update(raw)
    return digest.digest()[:FINGERPRINT_BYTES].hex()
