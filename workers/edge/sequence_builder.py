"""From an order to a sequence: renders, tokenizes and checks on the caller's thread, so that no step waits for it.

Refuses what this model can never answer. Knows no KV cells and no scheduling.
"""

from collections.abc import Sequence
from concurrent.futures import Future

from config.settings import EarlyEscalationSettings
from schemas.drafts import Draft
from schemas.policy import Tier
from schemas.requests import Message
from schemas.results import FailureKind
from workers.edge.chat_template import ChatTemplate, TemplateRefused
from workers.edge.confidence import UnknownStrategy
from workers.edge.constraint import Grammar
from workers.edge.early_escalation import EarlyEscalation
from workers.edge.edge_sequence import DraftOrder, EdgeSequence, Listener
from workers.edge.llama import Llama
from workers.runtime.constraint_check import GrammarChecker
from workers.runtime.constraints import check_biases
from workers.runtime.control_tokens import PromptTokens
from workers.runtime.failures import RequestRefused


class SequenceBuilder:
    """Builds sequences for one model. Thread-safe."""

    def __init__(self, model: Llama, context_tokens: int, early: EarlyEscalationSettings) -> None:
        self._model, self._context_tokens, self._early = model, context_tokens, early
        template = ChatTemplate(model.chat_template, bos_text=model.bos_text, eos_text=model.eos_text)
        self._prompts = PromptTokens(model, template.render, model.chat_template or "")
        self._grammars = GrammarChecker(model.constraint_tokenizer)

    def build(self, order: DraftOrder, arrival: int, future: Future[Draft], listener: Listener | None) -> EdgeSequence:
        """The sequence, ready to be scheduled. Raises `RequestRefused`. Blocks where there is a grammar to check."""
        tokens = self.prompt_of(order.messages)
        limit = min(order.sampling.max_tokens, self._context_tokens - len(tokens))
        try:
            scorable = EarlyEscalation.is_possible(order.rule)
        except UnknownStrategy as error:
            raise RequestRefused(FailureKind.UNSUPPORTED_OPTION, str(error)) from error
        check_biases(order.sampling.logit_bias, self._model.vocab_size, Tier.EDGE)
        checked = self._grammars.grammar_of(order.sampling, order.cache_namespace)
        grammar = None if checked is None else Grammar.compiled(*checked)
        may_escalate = order.may_escalate_early and scorable
        early = EarlyEscalation(order.rule, self._early, limit) if may_escalate else None
        return EdgeSequence(order, arrival, tokens, limit, future, listener, grammar, early)

    def prompt_of(self, messages: Sequence[Message]) -> list[int]:
        """The conversation in the model's tokens. Raises `RequestRefused` where it cannot be answered."""
        try:
            tokens = self._prompts.of(messages)
        except TemplateRefused as error:
            raise RequestRefused(FailureKind.UNSUPPORTED_OPTION, str(error)) from error
        if len(tokens) >= self._context_tokens:
            raise RequestRefused(
                FailureKind.PROMPT_TOO_LONG,
                f"the prompt has {len(tokens)} tokens; the edge model's context holds {self._context_tokens}, "
                "of which the answer needs at least 1",
            )
        if not tokens:
            raise RequestRefused(FailureKind.UNSUPPORTED_OPTION, "the prompt has no tokens")
        return tokens

    def close(self) -> None:
        """End the process that checks grammars. Idempotent."""
        self._grammars.close()
