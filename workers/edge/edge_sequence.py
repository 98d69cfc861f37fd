"""One request in the engine: its tokens, its text, and why it ended. Knows no other request and no llama.cpp.

Owns the state that must survive a preemption: tokens, text, figures and the sampler's random state.
"""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from schemas.drafts import Draft, TokenFigures
from schemas.events import DraftText
from schemas.requests import ConfidenceRule, Message, Sampling
from schemas.results import FinishReason, TokenLogprob
from workers.edge.constraint import Grammar
from workers.edge.early_escalation import EarlyEscalation
from workers.edge.prefix_cache import KVSequence
from workers.edge.sampling import Sampler
from workers.edge.text_stream import TextStream
from workers.edge.token_metrics import Floats, TokenMetrics
from workers.runtime.logprob_joining import joined

Listener = Callable[[DraftText], None]


@dataclass(frozen=True)
class DraftOrder:
    """What the engine is asked to draft."""

    request_id: str
    messages: tuple[Message, ...]
    sampling: Sampling
    rule: ConfidenceRule
    #: False neither reads nor fills the prefix cache.
    use_cache: bool
    #: The only namespace whose cached prefixes it may read and add to.
    cache_namespace: str
    #: Give up a draft that can no longer become sure.
    may_escalate_early: bool


@dataclass(eq=False)
class EdgeSequence:
    """A request from `submit` to its draft. Every one of `tokens`, except the last written one, gets KV cells."""

    order: DraftOrder
    #: Place in the order of arrival; kept over a preemption.
    arrival: int
    #: The prompt and what was written.
    tokens: list[int]
    #: Tokens that may be written: `max_tokens`, or what the context leaves.
    limit: int
    future: Future[Draft]
    listener: Listener | None
    grammar: Grammar | None
    #: None where the draft is always written to its end.
    early_escalation: EarlyEscalation | None
    #: Its KV cells while it is running.
    kv: KVSequence | None = None
    #: Prompt tokens that came from the prefix cache instead of being computed.
    cached_tokens: int = 0
    preempted: bool = False
    finish_reason: FinishReason | None = None
    escalated_early: bool = False
    #: One for each written token.
    metrics: list[TokenMetrics] = field(default_factory=list)
    #: One for each written token, where the request wants them.
    logprobs: list[TokenLogprob] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.prompt_tokens = len(self.tokens)
        self.cache_namespace = self.order.cache_namespace if self.order.use_cache else None
        self._sampler = Sampler(self.order.sampling, self.tokens)
        self._text = TextStream(self.order.sampling.stop)

    @property
    def computed(self) -> int:
        """How many of the tokens have KV cells. Any thread may ask."""
        kv = self.kv
        return 0 if kv is None else kv.num_computed

    @property
    def pending(self) -> int:
        """Tokens without KV cells: 1 in decode, more in prefill."""
        return len(self.tokens) - self.computed

    def sample(self, logits: Floats) -> int:
        """The next token, from a row of raw logits. Raises `BeyondModel`."""
        sampler, grammar = self._sampler, self.grammar
        if grammar is None:
            return sampler.sample(logits)
        token = int(logits.argmax()) if sampler.takes_argmax else None
        if token is None or not grammar.permits(token):  # mostly it is permitted, which is cheaper than a mask
            token = sampler.sample(grammar.mask(logits))
        grammar.accept(token)
        return token

    def append(self, token: int, metrics: TokenMetrics, piece: bytes, *, ends_text: bool) -> None:
        """Add a written token; passes new text to the listener and sets `finish_reason` if this was the last."""
        self.tokens.append(token)
        self.metrics.append(metrics)
        self._sampler.accept(token)
        text = "" if ends_text else self._text.push(piece)
        if ends_text or self._text.stopped:
            self.finish_reason = FinishReason.STOP
        elif len(self.metrics) >= self.limit:
            self.finish_reason = FinishReason.LENGTH
        elif self._should_escalate():
            self.finish_reason, self.escalated_early = FinishReason.LENGTH, True
        if self.finish_reason:
            text += self._text.finish()
        if text and self.listener is not None:
            self.listener(DraftText(position=len(self._text.text) - len(text), text=text))

    def draft(self, model: str, vocabulary: str) -> Draft:
        """The finished draft, not assessed yet. Call it only once `finish_reason` is set."""
        assert self.finish_reason is not None
        return Draft(
            text=self._text.text,
            token_ids=tuple(self.tokens[self.prompt_tokens :]),
            figures=_figures(self.metrics),
            finish_reason=self.finish_reason,
            escalated_early=self.escalated_early,
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached_tokens,
            model=model,
            vocabulary=vocabulary,
            logprobs=joined(self.logprobs, self._text.text),
        )

    def _should_escalate(self) -> bool:
        early = self.early_escalation
        if early is None or not early.is_due(len(self.metrics)):
            return False
        return early.should_escalate(_figures(self.metrics[early.num_scored :]))


def _figures(metrics: list[TokenMetrics]) -> TokenFigures:
    """Rows to columns."""
    return TokenFigures(**{name: tuple(getattr(row, name) for row in metrics) for name in TokenFigures.model_fields})
