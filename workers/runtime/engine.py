"""What every engine promises, whichever model and library is behind it: the interface between a worker and its engine.

Owns the protocols alone. `tests/engine_contract.py` is the same in tests, and every engine passes them.
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
        """How many of these first tokens the cache holds for requests of the namespace."""

    @property
    def cache_losses(self) -> int:
        """Rises whenever the cache gives something up."""


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
        """False before the start, and once the engine cannot answer any more: its process should end then."""

    @property
    def cached_prefixes(self) -> CachedPrefixes | None:
        """The prefix cache; None where there is none, or its content is not known."""

    def start(self) -> None:
        """Block until the engine can answer. Call it once. Raises `EngineDied` if it never will."""

    def submit(self, order: OrderT_contra, listener: Listener | None = None) -> Future[AnswerT]:
        """Begin an answer and return at once.

        The future fails with `RequestRefused`, `RequestCancelled`, `EngineDied`, or whatever the request broke. The
        listener is not called after it has ended, and the request is no longer in flight by then. Raises `ValueError`
        if a request of the same id is in flight.
        """

    def cancel(self, request_id: str) -> None:
        """Stop working on the request, if it is in flight. Idempotent; returns at once."""

    def progress(self, request_id: str) -> int:
        """What was done for the request so far, as a number that grows; 0 for one that is not in flight."""

    def cache_statistics(self) -> CacheStatistics:
        """The KV cache since the start."""

    def verification_statistics(self) -> VerificationStatistics | None:
        """Verified drafts since the start; None for an engine that writes them."""

    def close(self) -> None:
        """Release the engine; what is in flight fails with `EngineDied`. Idempotent; blocks for seconds."""
