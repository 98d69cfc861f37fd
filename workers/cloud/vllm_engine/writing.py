"""One answer on vLLM, from order to answer: exact verification, or writing from nothing."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from vllm.outputs import RequestOutput
from vllm.v1.engine.async_llm import AsyncLLM

from config.settings import VerifierSettings
from schemas.drafts import Draft
from schemas.results import DraftStatistics, FailureKind, FinishReason, TokenLogprob
from workers.cloud.alignment import Alignment
from workers.cloud.answering import AnswerOrder, CloudAnswer, Listener
from workers.cloud.drafts_in_flight import DraftHint
from workers.cloud.narrating import Narration
from workers.cloud.vllm_engine.parameters import sampling_params
from workers.cloud.vllm_engine.prompts import Prompts, TextLengths
from workers.failures import RequestRefused

#: vLLM's words for why it stopped, as ours.
FINISH_REASONS = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH}


@dataclass
class _Written:
    """What has come out of the engine for one request."""

    token_ids: list[int] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    cached_tokens: int = 0
    steps: int = 0
    finish_reason: str | None = None


class AnswerWriter:
    """Writes one order after another on one engine; holds nothing between them."""

    def __init__(self, llm: AsyncLLM, tokenizer: Any, prompts: Prompts, verifier: VerifierSettings) -> None:
        self._llm = llm
        self._tokenizer = tokenizer
        self._prompts = prompts
        self._verifier = verifier

    async def write(
        self, order: AnswerOrder, listener: Listener | None, progressed: Callable[[int], None]
    ) -> CloudAnswer:
        """The answer to one order. Raises `RequestRefused`, or what vLLM raises."""
        prompt = self._prompts.tokens(order.messages)
        verifier = order.tuning or self._verifier
        draft = order.draft if verifier.enabled else None
        draft_tokens, probabilities = self._prompts.draft_tokens(draft) if draft else ((), ())
        hint = DraftHint(
            token_ids=draft_tokens,
            probabilities=probabilities,
            rejoin=verifier.rejoin,
            adapt=verifier.adapt,
            max_proposed=verifier.max_proposed,
            min_edge_probability=verifier.min_edge_probability,
        )
        params = sampling_params(
            order.sampling,
            max_tokens=min(order.sampling.max_tokens, self._prompts.room(prompt)),
            use_cache=order.use_cache,
            hint=hint.pack() if draft_tokens else None,
        )
        alignment = Alignment(draft_tokens)
        telling = _Telling(self._tokenizer, prompt, alignment, listener, has_draft=draft is not None)
        written = _Written()
        async for output in self._llm.generate(self._input(prompt, order), params, order.request_id):
            self._take(output, written, order)
            telling.tell(output)
            progressed(len(written.token_ids))
        statistics = _statistics(draft, len(draft_tokens), alignment, written) if draft else None
        return self._answer(order, prompt, written, statistics)

    @staticmethod
    def _input(prompt: list[int], order: AnswerOrder) -> Any:
        """A salt of its own keeps a request's blocks from being found by any other."""
        salt = {} if order.use_cache else {"cache_salt": uuid4().hex}
        return {"prompt_token_ids": prompt, **salt}

    @staticmethod
    def _take(output: RequestOutput, written: _Written, order: AnswerOrder) -> None:
        new = output.outputs[0]
        written.token_ids.extend(new.token_ids)
        written.text.append(new.text)
        written.steps += bool(new.token_ids)
        written.cached_tokens = output.num_cached_tokens or 0
        written.finish_reason = new.finish_reason
        if new.logprobs:
            entries = zip(new.token_ids, new.logprobs, strict=True)
            written.logprobs.extend(_logprob(token, entry, order.sampling.top_logprobs) for token, entry in entries)

    @staticmethod
    def _answer(order: AnswerOrder, prompt: list[int], written: _Written, draft: DraftStatistics | None) -> CloudAnswer:
        if written.finish_reason not in FINISH_REASONS:
            raise RequestRefused(
                FailureKind.ENGINE_ERROR, f"vLLM ended request {order.request_id} with {written.finish_reason!r}"
            )
        return CloudAnswer(
            text="".join(written.text),
            token_ids=tuple(written.token_ids),
            finish_reason=FINISH_REASONS[written.finish_reason],
            prompt_tokens=len(prompt),
            cached_tokens=written.cached_tokens,
            draft=draft,
            logprobs=tuple(written.logprobs),
        )


def _statistics(draft: Draft, drafted: int, alignment: Alignment, written: _Written) -> DraftStatistics:
    return DraftStatistics(
        drafted_tokens=drafted,
        accepted_tokens=alignment.accepted,
        rewritten_tokens=len(written.token_ids) - alignment.accepted,
        acceptance_rate=alignment.accepted / drafted if drafted else None,
        verified=True,
        escalated_early=draft.escalated_early,
        cloud_steps=written.steps,
        lossless=True,
    )


class _Telling:
    """Aligns an answer with its draft as it is written, and tells the listener."""

    def __init__(
        self,
        tokenizer: Any,
        prompt: list[int],
        alignment: Alignment,
        listener: Listener | None,
        *,
        has_draft: bool,
    ) -> None:
        self._alignment = alignment
        self._listener = listener
        self._has_draft = has_draft
        self._lengths = TextLengths(tokenizer, prompt) if listener and has_draft else None
        self._narration = Narration(has_draft=has_draft)

    def tell(self, output: RequestOutput) -> None:
        new = output.outputs[0]
        if self._has_draft:
            for token in new.token_ids:
                accepted = self._alignment.advance(token)
                if self._lengths:
                    self._narration.wrote_token(self._lengths.added_by(token), accepted=accepted)
        if self._listener:
            for piece in self._narration.tell(new.text):
                self._listener(piece)


def _logprob(token: int, entry: Any, top: int) -> TokenLogprob:
    """An entry of vLLM (token id to log-probability, the chosen token always among them) as ours."""
    ranked = sorted(entry.values(), key=lambda item: -item.logprob)[:top]
    return TokenLogprob(
        token=entry[token].decoded_token or "",
        token_id=token,
        logprob=entry[token].logprob,
        top=tuple((item.decoded_token or "", item.logprob) for item in ranked),
    )
