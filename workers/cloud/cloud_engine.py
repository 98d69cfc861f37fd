"""What a cloud engine is asked and what it answers: the seam between the verify job and any engine.

Owns the order, the answer and the protocol that both engines keep (`vllm_engine`, `remote`). Knows no engine, no
queue and no Redis.
"""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from config.settings import VerifierSettings
from schemas.drafts import Draft
from schemas.events import AcceptedText, CorrectedText, WrittenText
from schemas.requests import AcceptanceRule, Message, Sampling
from schemas.results import DraftStatistics, FinishReason, TokenLogprob
from schemas.workers import CacheStatistics, VerificationStatistics
from workers.runtime.prefix_ledger import CachedPrefixes

#: Told of each piece of the answer as it is written, in order, on the engine's own thread: it must not block.
Listener = Callable[[AcceptedText | CorrectedText | WrittenText], None]


@dataclass(frozen=True)
class AnswerOrder:
    """One answer to be written, with the edge's draft where there is one."""

    request_id: str
    messages: tuple[Message, ...]
    sampling: Sampling
    #: None: write from nothing.
    draft: Draft | None
    acceptance: AcceptanceRule
    #: False: no cached prefix is read, and nothing that this request leaves can be read by another.
    use_cache: bool
    #: Only requests of the same namespace read the prefixes that this one leaves, and it reads only theirs.
    cache_namespace: str
    #: How drafts are verified for this order alone; None: as configured. Experiments compare with it.
    tuning: VerifierSettings | None = None


@dataclass(frozen=True)
class CloudAnswer:
    """The answer as the cloud model wrote it."""

    text: str
    #: The end-of-text token included, where the model wrote one.
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    #: Prompt tokens that the prefix cache spared.
    cached_tokens: int
    #: None where there was no draft.
    draft: DraftStatistics | None
    logprobs: tuple[TokenLogprob, ...] = ()


class CloudEngine(Protocol):
    """Writes many answers at once. Every method may be called from any thread."""

    @property
    def model_name(self) -> str:
        """The model as results name it."""

    @property
    def engine_name(self) -> str:
        """The kind of engine, as `cloud.engine` names it."""

    def start(self) -> None:
        """Block until the engine can answer. Raises `EngineDied` if it never will."""

    def submit(self, order: AnswerOrder, listener: Listener | None = None) -> Future[CloudAnswer]:
        """Begin an answer and return at once.

        The future fails with `RequestRefused`, `RequestCancelled` or `EngineDied`.
        """

    def cancel(self, request_id: str) -> None:
        """Stop working on the request, if it is in flight. Idempotent; returns at once."""

    def progress(self, request_id: str) -> int:
        """Tokens written so far; 0 for a request that is not in flight."""

    def cache_statistics(self) -> CacheStatistics:
        """The KV cache since the start."""

    def verification_statistics(self) -> VerificationStatistics:
        """Verified drafts since the start."""

    @property
    def prefix_holder(self) -> CachedPrefixes | None:
        """Who says what the prefix cache holds; None where that cannot be told."""

    @property
    def in_flight(self) -> int:
        """Answers that are being written."""

    @property
    def alive(self) -> bool:
        """False once the engine cannot answer any more; its process should end then."""

    def close(self) -> None:
        """Release the engine; what is in flight fails with `EngineDied`. Idempotent; blocks for seconds."""
