"""The msgpack form of every message: `encode`, `decode`, and the error that keeps undecodable bytes."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import msgpack
from pydantic import ValidationError

from schemas.message import Wire

__all__ = ["UndecodableMessage", "Wire", "decode", "encode", "reading"]

ModelT = TypeVar("ModelT", bound=Wire)


class UndecodableMessage(Exception):
    """Bytes that are not the expected message; `raw` keeps them for debugging."""

    def __init__(self, expected: str, raw: bytes, reason: str) -> None:
        super().__init__(f"{len(raw)} bytes are not a {expected}: {reason}")
        self.expected = expected
        self.raw = raw


def encode(message: Wire) -> bytes:
    """The message as msgpack; never a pickle, never a class name."""
    packed: bytes = msgpack.packb(message.model_dump(mode="json"))
    return packed


def decode(expected: type[ModelT], raw: bytes) -> ModelT:
    """Read what `encode` wrote. Raises `UndecodableMessage` for anything else."""
    try:
        return expected.model_validate(msgpack.unpackb(raw, strict_map_key=False))
    except (ValueError, TypeError, msgpack.UnpackException, ValidationError) as error:
        raise UndecodableMessage(expected.__name__, raw, str(error)) from error


@contextmanager
def reading(expected: str, fields: Mapping[bytes, bytes]) -> Iterator[None]:
    """Turn errors in the block, which reads these stored fields, into `UndecodableMessage`."""
    try:
        yield
    except (ValueError, TypeError, KeyError, msgpack.UnpackException) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UndecodableMessage(expected, msgpack.packb(dict(fields)), reason) from error
