"""One answer on vLLM, from order to answer: exactly verified, scored against a threshold, or written from nothing."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from vllm import SamplingParams
from vllm.v1.engine.async_llm import AsyncLLM

from config.settings import VerifierSettings
from schemas.requests import AcceptanceMode
from schemas.results import DraftStatistics, FailureKind, FinishReason, TokenLogprob
from workers.cloud.cloud_calls import Progressed
from workers.cloud.cloud_engine import AnswerOrder, CloudAnswer, Listener
from workers.cloud.drafts_in_flight import DraftHint
from workers.cloud.threshold_acceptance import AcceptedPrefix, can_be_scored, standing_prefix
from workers.cloud.vllm_engine.options import Options
from workers.cloud.vllm_engine.parameters import sampling_params, scoring_params
from workers.cloud.vllm_engine.prompts import Prompts
from workers.cloud.vllm_engine.transcript import Transcript
from workers.runtime.failures import BeyondModel, RequestRefused
from workers.runtime.logprob_joining import DoesNotJoin

log = logging.getLogger(__name__)

#: vLLM's words for why it stopped, as ours.
FINISH_REASONS = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH}


@dataclass(frozen=True)
class _Written:
    """An answer, and whether the model ended it: not a stop string, and not its length."""

    answer: CloudAnswer
    ended_itself: bool


class AnswerWriter:
    """Writes one order after another on one engine; holds nothing between them."""

    def __init__(self, llm: AsyncLLM, prompts: Prompts, options: Options, verifier: VerifierSettings) -> None:
        self._llm = llm
        self._prompts = prompts
        self._options = options
        self._verifier = verifier

    async def write(self, order: AnswerOrder, listener: Listener | None, progressed: Progressed) -> CloudAnswer:
        """The answer to one order. Raises `RequestRefused`, or what vLLM raises."""
        lark = await self._options.check(order.sampling, order.cache_namespace)
        verifier = order.tuning or self._verifier
        answer = _Answer(self._llm, self._prompts, order, verifier, lark=lark, listener=listener, progressed=progressed)
        written = await self._written(order, answer, verifier)
        if lark is not None and written.ended_itself:
            await self._options.check_answer(lark, written.answer.token_ids)
        return written.answer

    async def _written(self, order: AnswerOrder, answer: "_Answer", verifier: VerifierSettings) -> "_Written":
        if answer.draft is None:
            return await answer.written({})
        if order.acceptance.mode is AcceptanceMode.THRESHOLD and can_be_scored(order.sampling):
            return await answer.scored(order.acceptance.threshold)
        hint = DraftHint(
            token_ids=answer.draft_tokens,
            probabilities=answer.probabilities,
            model=answer.draft.model,
            rejoin=verifier.rejoin,
            adapt=verifier.adapt,
            max_proposed=verifier.max_proposed,
            min_edge_probability=verifier.min_edge_probability,
        )
        return await answer.written(hint.pack())


class _Answer:
    """One order being worked on."""

    def __init__(
        self,
        llm: AsyncLLM,
        prompts: Prompts,
        order: AnswerOrder,
        verifier: VerifierSettings,
        *,
        lark: str | None,
        listener: Listener | None,
        progressed: Progressed,
    ) -> None:
        self._llm = llm
        self._prompts = prompts
        self._order = order
        self._lark = lark
        self._progressed = progressed
        self._prompt = prompts.tokens(order.messages)
        self._most = min(order.sampling.max_tokens, prompts.room(self._prompt))
        # Blocks are found by requests of the same salt only. One of its own keeps a request's from every other.
        self._salt = {"cache_salt": order.cache_namespace if order.use_cache else uuid4().hex}
        self.draft = draft = order.draft if verifier.enabled else None
        self.draft_tokens, self.probabilities = prompts.draft_tokens(draft) if draft else ((), ())
        lengths = prompts.text_lengths(self._prompt) if draft and listener else None
        self._transcript = Transcript(self.draft_tokens if draft else None, lengths, listener, rejoin=verifier.rejoin)

    async def written(self, hint: dict[str, Any]) -> "_Written":
        """Written by the model, which a draft only makes cheaper."""
        await self._write_on(self._most, hint)
        return self._answer(None)

    async def scored(self, threshold: float) -> "_Written":
        """The draft as far as it stands, and the model's own from there on."""
        # The pass that scores writes one token itself, which must fit into the context behind the draft.
        scored = self.draft_tokens[: min(self._most, self._prompts.room(self._prompt) - 1)]
        entries = await self._score(scored)
        chosen = [entry[token].logprob for token, entry in zip(scored, entries, strict=True)]
        favourites = [max(item.logprob for item in entry.values()) for entry in entries]
        standing = standing_prefix(chosen, favourites, threshold)
        sampling, transcript, tokens = self._order.sampling, self._transcript, scored[: standing.num_tokens]
        text, kept, stopped = self._prompts.cut(self._prompt, tokens, sampling.stop)
        if sampling.logprobs:
            transcript.note_logprobs(tokens[:kept], entries[:kept], self._prompts, sampling.top_logprobs)
        transcript.write(tokens[:kept], text)
        transcript.steps = 1
        transcript.finish_reason = "stop" if stopped else "length"
        if not stopped and kept < self._most:
            await self._write_on(self._most - kept, None)
        return self._answer(AcceptedPrefix(kept, standing.shortfalls[:kept]))

    async def _score(self, tokens: Sequence[int]) -> Sequence[Any]:
        """One pass over prompt and draft at once: what vLLM says of each of the draft's tokens and the likeliest."""
        entries: Sequence[Any] = ()
        params = scoring_params(self._order.sampling.top_logprobs)
        async for output in self._generate([*self._prompt, *tokens], params, "score"):
            entries = (output.prompt_logprobs or ())[len(self._prompt) :]
        return entries

    async def _write_on(self, most_tokens: int, hint: dict[str, Any] | None) -> None:
        """Let the model write on behind what is written. `hint` None: behind a scored draft, whose blocks are held."""
        order, transcript = self._order, self._transcript
        reads = order.use_cache or hint is None
        params = sampling_params(order.sampling, lark=self._lark, max_tokens=most_tokens, use_cache=reads, hint=hint)
        async for output in self._generate([*self._prompt, *transcript.token_ids], params, "write"):
            transcript.take(output, self._prompts, order.sampling.top_logprobs)
            self._progressed(len(transcript.token_ids))
        if hint is None:
            transcript.cached_tokens = 0

    def _generate(self, prompt: list[int], params: SamplingParams, pass_name: str) -> Any:
        request_id = f"{self._order.request_id}-{pass_name}"
        return self._llm.generate({"prompt_token_ids": prompt, **self._salt}, params, request_id)

    def _answer(self, standing: AcceptedPrefix | None) -> "_Written":
        transcript = self._transcript
        if transcript.finish_reason not in FINISH_REASONS:
            if self._lark is not None:  # what its parser said, vLLM does not tell
                raise BeyondModel("the grammar became too complex for vLLM before the answer was complete")
            raise RequestRefused(
                FailureKind.ENGINE_ERROR,
                f"vLLM ended request {self._order.request_id} with {transcript.finish_reason!r}",
            )
        answer = CloudAnswer(
            text=transcript.text,
            token_ids=tuple(transcript.token_ids),
            finish_reason=FINISH_REASONS[transcript.finish_reason],
            prompt_tokens=len(self._prompt),
            cached_tokens=transcript.cached_tokens,
            draft=self._statistics(standing) if self.draft else None,
            logprobs=self._logprobs(),
        )
        return _Written(answer, ended_itself=transcript.finish_reason == "stop" and transcript.stop_reason is None)

    def _logprobs(self) -> tuple[TokenLogprob, ...]:
        if not self._order.sampling.logprobs:
            return ()
        try:
            return self._transcript.joined_logprobs(self._prompts.text_lengths(self._prompt))
        except DoesNotJoin as reason:
            log.warning("logprobs_left_out request_id=%s reason=%r", self._order.request_id, str(reason))
            return ()

    def _statistics(self, standing: AcceptedPrefix | None) -> DraftStatistics:
        drafted, accepted = len(self.draft_tokens), self._transcript.accepted
        return DraftStatistics(
            drafted_tokens=drafted,
            accepted_tokens=accepted,
            rewritten_tokens=len(self._transcript.token_ids) - accepted,
            acceptance_rate=accepted / drafted if drafted else None,
            verified=True,
            escalated_early=self.draft is not None and self.draft.escalated_early,
            cloud_steps=self._transcript.steps,
            lossless=standing is None,
            mean_shortfall=standing.mean_shortfall if standing else None,
            max_shortfall=standing.max_shortfall if standing else None,
        )
