"""A conversation as a chain of hashes, so that whoever has the same prefix finds the same hashes.

The canonical bytes of a conversation are its messages in order, in one spelling, before any template: a gateway needs
neither a tokenizer nor a template, and a longer conversation begins with the bytes of the shorter. They are cut into
blocks of a fixed size; each block's hash covers the block and the hash before it, so one hash stands for the whole
prefix up to its block (as vLLM names its own blocks). The model, the cache namespace and the block size are the chain's
seed, so that what is cached for one model or one namespace is never taken for another's. Pure.
"""

import hashlib
from collections.abc import Iterable, Sequence

from schemas.requests import Message

#: Bytes of a hash: among a million blocks, two meet with a chance of one in thirty million.
HASH_BYTES = 8
#: Bytes that no UTF-8 text holds: the end of a message's role, and of its content.
END_OF_ROLE, END_OF_CONTENT = b"\xfe", b"\xff"
#: What is between the parts of a chain's seed; no UTF-8 text holds it either, so that no two seeds are spelled alike.
END_OF_PART = b"\xff"


def canonical_bytes(messages: Iterable[Message]) -> bytes:
    """The messages in their one spelling."""
    parts = (
        message.role.encode() + END_OF_ROLE + message.content.encode("utf-8", "surrogatepass") + END_OF_CONTENT
        for message in messages
    )
    return b"".join(parts)


def block_hashes(messages: Sequence[Message], *, model: str, namespace: str, block_bytes: int) -> tuple[bytes, ...]:
    """The hashes of the conversation's full blocks, first to last; what is left behind the last one has none."""
    text = canonical_bytes(messages)
    chain = _hashed(END_OF_PART.join((b"%d" % block_bytes, model.encode(), namespace.encode())))
    hashes = []
    for start in range(0, len(text) - block_bytes + 1, block_bytes):
        chain = _hashed(chain + text[start : start + block_bytes])
        hashes.append(chain)
    return tuple(hashes)


def _hashed(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=HASH_BYTES).digest()
