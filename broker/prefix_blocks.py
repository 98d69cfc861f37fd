"""A conversation as chained block hashes: conversations with the same prefix share its hashes.

The canonical bytes of a conversation are its messages in order, in one encoding, before any chat template is applied.
So the gateway needs neither tokenizer nor template, and a continued conversation begins with the bytes of the earlier
one. The bytes are cut into blocks of a fixed size. Each hash covers its block and the previous hash, so that it
identifies the whole prefix up to the end of its block (as in vLLM's prefix caching). The model, the cache namespace and
the block size seed the chain, so that hashes of different models or namespaces never match. Pure.
"""

import hashlib
from collections.abc import Iterable, Sequence

from schemas.requests import Message

#: Bytes of a hash: two of a million blocks collide with a probability of one in thirty million.
HASH_BYTES = 8
#: Bytes that occur in no UTF-8 text: the end of a message's role, and of its content.
END_OF_ROLE, END_OF_CONTENT = b"\xfe", b"\xff"
#: Separates the parts of a chain's seed. It occurs in no UTF-8 text either, so that no two seeds are the same bytes.
END_OF_PART = b"\xff"


def canonical_bytes(messages: Iterable[Message]) -> bytes:
    """The canonical bytes of the messages."""
    parts = (
        message.role.encode() + END_OF_ROLE + message.content.encode("utf-8", "surrogatepass") + END_OF_CONTENT
        for message in messages
    )
    return b"".join(parts)


def block_hashes(messages: Sequence[Message], *, model: str, namespace: str, block_bytes: int) -> tuple[bytes, ...]:
    """The hashes of the conversation's full blocks, first to last. A partial last block has none."""
    text = canonical_bytes(messages)
    chain = _hash(END_OF_PART.join((b"%d" % block_bytes, model.encode(), namespace.encode())))
    hashes = []
    for start in range(0, len(text) - block_bytes + 1, block_bytes):
        chain = _hash(chain + text[start : start + block_bytes])
        hashes.append(chain)
    return tuple(hashes)


def _hash(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=HASH_BYTES).digest()
