"""One request in flight: what was read, what was written, and why it ended. Knows no other request and no engine.

Owns the state that a preemption must not lose: tokens, text, figures and the random numbers still to come.
"""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

from schemas.drafts import Draft, TokenFigures
from schemas.events import DraftText
from schemas.requests import ConfidenceRule, Message, Sampling
from schemas.results import FinishReason, TokenLogprob
from workers.edge.early_escalation import Outlook
from workers.edge.sampling import Chooser
from workers.edge.text_stream import TextStream
from workers.edge.token_metrics import Floats, Row
from workers.runtime.logprob_joining import joined

Listener = Callable[[DraftText], None]


class Constraint(Protocol):
    """Which tokens an answer may go on with (`workers.edge.constraint.Grammar`). Each may raise `BeyondModel`."""

    def permits(self, token: int) -> bool:
        """Whether the answer may go on with this token."""

    def mask(self, logits: Floats) -> Floats:
        """The row with minus infinity for each token that is forbidden here."""

    def accept(self, token: int) -> None:
        """Go on past a permitted token."""


@dataclass(frozen=True)
class DraftOrder:
    """What the engine is asked to draft."""

    request_id: str
    messages: tuple[Message, ...]
    sampling: Sampling
    rule: ConfidenceRule
    #: False neither reads nor feeds the prefix cache.
    use_cache: bool
    #: What it reads and feeds of the prefix cache is this namespace's alone.
    cache_namespace: str
    #: Give up a draft that can no longer become sure.
    may_escalate_early: bool


@dataclass(eq=False)
class EdgeSequence:
    """A request between `submit` and its draft. `tokens` grow; all but the last that was written have KV cells."""

    order: DraftOrder
    arrival: int
    tokens: list[int]
    #: Tokens that may be written: `max_tokens`, or what the context leaves.
    limit: int
    future: Future[Draft]
    listener: Listener | None
    constraint: Constraint | None
    outlook: Outlook | None
    computed: int = 0
    #: The KV sequence, while it has one.
    kv_sequence: int | None = None
    cached_tokens: int = 0
    preempted: bool = False
    finish_reason: FinishReason | None = None
    escalated_early: bool = False
    rows: list[Row] = field(default_factory=list)
    #: Where they are wanted, of every token that was written.
    logprobs: list[TokenLogprob] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.prompt_tokens = len(self.tokens)
        self.chooser = Chooser(self.order.sampling, self.tokens)
        self._stream = TextStream(self.order.sampling.stop)

    @property
    def shares(self) -> bool:
        """Whether it may use what others of its namespace compute."""
        return self.order.use_cache

    @property
    def namespace(self) -> str:
        """The namespace of the prefix cache that it reads and feeds."""
        return self.order.cache_namespace

    @property
    def num_written(self) -> int:
        """Tokens written so far."""
        return len(self.rows)

    def choose(self, logits: Floats, likeliest: int) -> int:
        """The next token, given the row of raw logits and its likeliest token. Raises `BeyondModel`."""
        chooser, constraint = self.chooser, self.constraint
        if constraint is None:
            return likeliest if chooser.takes_likeliest else chooser.choose(logits)
        if chooser.takes_likeliest and constraint.permits(likeliest):  # mostly so, and cheaper than a mask
            token = likeliest
        else:
            token = chooser.choose(constraint.mask(logits))
        constraint.accept(token)
        return token

    def write(self, token: int, row: Row, piece: bytes, *, ends_text: bool) -> None:
        """Append a token; tells the listener of new text and sets `finish_reason` if this was the last."""
        self.tokens.append(token)
        self.rows.append(row)
        self.chooser.note(token)
        text = "" if ends_text else self._stream.push(piece)
        if ends_text or self._stream.stopped:
            self.finish_reason = FinishReason.STOP
        elif self.num_written >= self.limit:
            self.finish_reason = FinishReason.LENGTH
        elif self._is_hopeless():
            self.finish_reason, self.escalated_early = FinishReason.LENGTH, True
        self._tell(text + self._stream.finish() if self.finish_reason else text)

    def draft(self, model: str, vocabulary: str) -> Draft:
        """What became of it. Only once `finish_reason` is set, and without confidence yet."""
        assert self.finish_reason is not None
        return Draft(
            text=self._stream.text,
            token_ids=tuple(self.tokens[self.prompt_tokens :]),
            figures=_table(self.rows),
            finish_reason=self.finish_reason,
            escalated_early=self.escalated_early,
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached_tokens,
            model=model,
            vocabulary=vocabulary,
            logprobs=joined(self.logprobs, self._stream.text),
        )

    def _is_hopeless(self) -> bool:
        outlook = self.outlook
        if outlook is None or not outlook.is_due(self.num_written):
            return False
        return outlook.is_hopeless(_table(self.rows[outlook.num_seen :]))

    def _tell(self, text: str) -> None:
        if text and self.listener is not None:
            self.listener(DraftText(position=self._stream.num_shown - len(text), text=text))


def _table(rows: list[Row]) -> TokenFigures:
    return TokenFigures(
        probability=tuple(row.probability for row in rows),
        scaled_probability=tuple(row.scaled_probability for row in rows),
        margin=tuple(row.margin for row in rows),
        normalised_entropy=tuple(row.normalised_entropy for row in rows),
        top_k_mass=tuple(row.top_k_mass for row in rows),
    )
