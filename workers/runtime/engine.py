"""The interface between a worker and its engine, whatever model and library is behind it.

Contains protocols only. `tests/engine_contract.py` has the tests that every engine passes.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Protocol, TypeVar

from schemas.events import AcceptedText, CorrectedText, DraftText, WrittenText
from schemas.requests import Message
from schemas.workers import CacheStatistics, VerificationStatistics

#: A piece of an answer's text.
TextPiece = DraftText | AcceptedText | CorrectedText | WrittenText
#: Called with each piece of the answer in order, on the engine's own thread: it must not block.
Listener = Callable[[TextPiece], None]
OrderT_contra = TypeVar("OrderT_contra", contravariant=True)
AnswerT = TypeVar("AnswerT")


class CachedPrefixes(Protocol):
    """What the engine's prefix cache holds. Every method may be called from any thread."""

    @property
    def model_name(self) -> str:
        """The model as results name it."""

    def prompt_of(self, messages: Sequence[Message]) -> Sequence[int]:
        """The conversation in the model's tokens. Raises `RequestRefused`."""

    def cached_prefix_tokens(self, token_ids: Sequence[int], namespace: str) -> int:
        """The length of the prefix of these tokens that the cache holds for requests of the namespace."""

    @property
    def cache_losses(self) -> int:
        """A number that rises whenever the cache evicts something."""


class Engine(Protocol[OrderT_contra, AnswerT]):
    """Writes many answers at once. Every method may be called from any thread."""

    @property
    def model_name(self) -> str:
        """The model as results name it."""

    @property
    def engine_name(self) -> str:
        """The kind of engine, as reports name it."""

    @property
    def in_flight(self) -> int:
        """Requests that were submitted and have not ended."""

    @property
    def alive(self) -> bool:
        """False before the start, and once the engine can no longer answer; then its process should end."""

    @property
    def cached_prefixes(self) -> CachedPrefixes | None:
        """The prefix cache; None if there is none or if its content is unknown."""

    def start(self) -> None:
        """Block until the engine can answer. Call it once. Raises `EngineDied` if the engine cannot start."""

    def submit(self, order: OrderT_contra, listener: Listener | None = None) -> Future[AnswerT]:
        """Begin an answer and return at once.

        The future fails with `RequestRefused`, `RequestCancelled`, `EngineDied`, or an unexpected error. Once it is
        done, the request is no longer in flight, and the listener is not called any more. Raises `ValueError` if a
        request with the same id is in flight.
        """

    def cancel(self, request_id: str) -> None:
        """Stop working on the request, if it is in flight. Idempotent; returns at once."""

    def progress(self, request_id: str) -> int:
        """A number that grows while the engine works on the request; 0 if the request is not in flight."""

    def cache_statistics(self) -> CacheStatistics:
        """Statistics of the KV cache since the start."""

    def verification_statistics(self) -> VerificationStatistics | None:
        """Statistics of verified drafts since the start; None for an engine that writes drafts."""

    def close(self) -> None:
        """Release the engine. Requests in flight fail with `EngineDied`. Idempotent; blocks for seconds."""
