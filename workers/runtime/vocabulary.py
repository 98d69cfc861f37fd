"""Whether two models mean the same by a token id: a fingerprint of the vocabulary.

Owns one pure function; each tier feeds it what its own engine says a token's text is. Knows no engine or tokenizer.
"""

import hashlib
from collections.abc import Iterable

#: Bytes of the digest that the fingerprint keeps: two vocabularies alike by chance are out of the question.
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
