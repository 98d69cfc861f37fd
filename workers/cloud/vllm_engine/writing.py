"""One answer on vLLM, from order to answer: with its draft verified exactly, with it scored, or without a draft."""

import logging
from collections.abc import Sequence
from statistics import mean
from typing import Any
from uuid import uuid4

from vllm import SamplingParams
from vllm.v1.engine.async_llm import AsyncLLM

from config.settings import VerifierSettings
from schemas.requests import AcceptanceMode
from schemas.results import DraftStatistics, FailureKind, FinishReason, TokenLogprob
from workers.cloud.answer_order import AnswerOrder, CloudAnswer
from workers.cloud.async_engine import ReportProgress
from workers.cloud.drafts_in_flight import DraftHint
from workers.cloud.threshold_acceptance import accepted_shortfalls, can_be_scored
from workers.cloud.vllm_engine.options import Options, check_answer
from workers.cloud.vllm_engine.parameters import sampling_params, scoring_params
from workers.cloud.vllm_engine.prompts import Prompts
from workers.cloud.vllm_engine.transcript import Transcript
from workers.runtime.engine import Listener
from workers.runtime.failures import BeyondModel, RequestRefused
from workers.runtime.logprob_joining import DoesNotJoin

log = logging.getLogger(__name__)

#: vLLM's finish reasons as ours.
FINISH_REASONS = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH}


class AnswerWriter:
    """Writes answers on one engine, many at once; keeps no state between them but how drafts are verified."""

    def __init__(self, llm: AsyncLLM, prompts: Prompts, options: Options, verifier: VerifierSettings) -> None:
        self._llm = llm
        self._prompts = prompts
        self._options = options
        self.verifier = verifier

    async def write(self, order: AnswerOrder, listener: Listener | None, report: ReportProgress) -> CloudAnswer:
        """The answer to one order. Raises `RequestRefused`, or what vLLM raises."""
        grammar = await self._options.check(order.sampling, order.cache_namespace)
        lark = grammar[0] if grammar else None
        generation = _Generation(
            self._llm, self._prompts, order, self.verifier, lark=lark, listener=listener, report=report
        )
        if generation.draft is None:
            await generation.write({})
        elif order.acceptance.mode is AcceptanceMode.THRESHOLD and can_be_scored(order.sampling):
            await generation.score_and_write(order.acceptance.threshold)
        else:
            await generation.write(generation.hint())
        answer = generation.answer()
        if grammar and generation.model_ended_it:
            await check_answer(*grammar, answer.token_ids)
        return answer


class _Generation:
    """The work on one order."""

    def __init__(
        self,
        llm: AsyncLLM,
        prompts: Prompts,
        order: AnswerOrder,
        verifier: VerifierSettings,
        *,
        lark: str | None,
        listener: Listener | None,
        report: ReportProgress,
    ) -> None:
        self._llm = llm
        self._prompts = prompts
        self._order = order
        self._verifier = verifier
        self._lark = lark
        self._report_progress = report
        self._prompt = prompts.tokens(order.messages)
        self._max_tokens = min(order.sampling.max_tokens, prompts.room(self._prompt))
        # vLLM finds cached blocks for requests of the same salt only; a random salt shares with nobody.
        self._salt = {"cache_salt": order.cache_namespace if order.use_cache else uuid4().hex}
        self.draft = draft = order.draft if verifier.enabled else None
        self._draft_tokens, self._probabilities = prompts.draft_tokens(draft) if draft else ((), ())
        #: Of each accepted token of a scored draft; None where the draft is verified exactly.
        self._shortfalls: Sequence[float] | None = None
        texts = prompts.token_texts(self._prompt) if draft and listener else None
        self._transcript = Transcript(self._draft_tokens if draft else None, texts, listener, rejoin=verifier.rejoin)

    def hint(self) -> dict[str, Any]:
        """What the proposer is told about the draft."""
        assert self.draft is not None
        return DraftHint(
            token_ids=self._draft_tokens,
            probabilities=self._probabilities,
            model=self.draft.model,
            rejoin=self._verifier.rejoin,
            adapt=self._verifier.adapt,
            max_proposed=self._verifier.max_proposed,
            min_edge_probability=self._verifier.min_edge_probability,
        ).pack()

    async def write(self, hint: dict[str, Any]) -> None:
        """Let the model write the whole answer; with a hint, its draft's tokens are proposed to it."""
        await self._write_on(self._max_tokens, hint)

    async def score_and_write(self, threshold: float) -> None:
        """Accept the draft's first tokens by the threshold, and let the model write the rest."""
        # The scoring pass writes one token itself, which must fit into the context behind the draft.
        scored = self._draft_tokens[: min(self._max_tokens, self._prompts.room(self._prompt) - 1)]
        entries = await self._score(scored)
        chosen = [entry[token].logprob for token, entry in zip(scored, entries, strict=True)]
        likeliest = [max(item.logprob for item in entry.values()) for entry in entries]
        shortfalls = accepted_shortfalls(chosen, likeliest, threshold)
        sampling, transcript, tokens = self._order.sampling, self._transcript, scored[: len(shortfalls)]
        text, kept, stopped = self._prompts.cut(self._prompt, tokens, sampling.stop)
        self._shortfalls = shortfalls[:kept]
        if sampling.logprobs:
            transcript.add_logprobs(tokens[:kept], entries[:kept], self._prompts, sampling.top_logprobs)
        transcript.add(tokens[:kept], text)
        transcript.steps = 1
        transcript.finish_reason = "stop" if stopped else "length"
        if not stopped and kept < self._max_tokens:
            await self._write_on(self._max_tokens - kept, None)

    async def _score(self, tokens: Sequence[int]) -> Sequence[Any]:
        """One forward pass over prompt and draft: the log-probabilities of each draft token and of the likeliest."""
        entries: Sequence[Any] = ()
        params = scoring_params(self._order.sampling.top_logprobs)
        async for output in self._generate([*self._prompt, *tokens], params, "score"):
            entries = (output.prompt_logprobs or ())[len(self._prompt) :]
        return entries

    async def _write_on(self, max_tokens: int, hint: dict[str, Any] | None) -> None:
        """Let the model write on. `hint` None: behind a scored draft, whose blocks are in the cache."""
        order, transcript = self._order, self._transcript
        reads = order.use_cache or hint is None
        params = sampling_params(order.sampling, lark=self._lark, max_tokens=max_tokens, use_cache=reads, hint=hint)
        async for output in self._generate([*self._prompt, *transcript.token_ids], params, "write"):
            transcript.take(output, self._prompts, order.sampling.top_logprobs)
            self._report_progress(len(transcript.token_ids))
        if hint is None:
            transcript.cached_tokens = 0

    def _generate(self, prompt: list[int], params: SamplingParams, pass_name: str) -> Any:
        request_id = f"{self._order.request_id}-{pass_name}"
        return self._llm.generate({"prompt_token_ids": prompt, **self._salt}, params, request_id)

    @property
    def model_ended_it(self) -> bool:
        """Whether the model's end-of-text token ended the answer, not a stop string and not its length."""
        return self._transcript.finish_reason == "stop" and self._transcript.stop_reason is None

    def answer(self) -> CloudAnswer:
        """What was written. Raises `RequestRefused` where vLLM ended it otherwise than by its end or its length."""
        transcript = self._transcript
        if transcript.finish_reason not in FINISH_REASONS:
            if self._lark is not None:  # vLLM does not pass on what its parser said
                raise BeyondModel("the grammar became too complex for vLLM before the answer was complete")
            raise RequestRefused(
                FailureKind.ENGINE_ERROR,
                f"vLLM ended request {self._order.request_id} with {transcript.finish_reason!r}",
            )
        return CloudAnswer(
            text=transcript.text,
            token_ids=tuple(transcript.token_ids),
            finish_reason=FINISH_REASONS[transcript.finish_reason],
            prompt_tokens=len(self._prompt),
            cached_tokens=transcript.cached_tokens,
            draft=self._statistics() if self.draft else None,
            logprobs=self._logprobs(),
        )

    def _logprobs(self) -> tuple[TokenLogprob, ...]:
        if not self._order.sampling.logprobs:
            return ()
        try:
            return self._transcript.joined_logprobs(self._prompts.token_texts(self._prompt))
        except DoesNotJoin as reason:
            log.warning("logprobs_left_out request_id=%s reason=%r", self._order.request_id, str(reason))
            return ()

    def _statistics(self) -> DraftStatistics:
        drafted, accepted = len(self._draft_tokens), self._transcript.accepted
        shortfalls = self._shortfalls
        return DraftStatistics(
            drafted_tokens=drafted,
            accepted_tokens=accepted,
            rewritten_tokens=len(self._transcript.token_ids) - accepted,
            acceptance_rate=accepted / drafted if drafted else None,
            verified=True,
            escalated_early=self.draft is not None and self.draft.escalated_early,
            cloud_steps=self._transcript.steps,
            lossless=shortfalls is None,
            mean_shortfall=None if shortfalls is None else mean(shortfalls or [0.0]),
            max_shortfall=None if shortfalls is None else max(shortfalls, default=0.0),
        )
