"""Our code inside vLLM's worker process, and everything that uses interfaces which vLLM calls experimental.

vLLM loads two classes by name: the proposer of `speculative_config.method: custom_class`, which is handed rows and no
request ids, and the worker extension, which gives the proposer the model runner that knows them. It relies on
`runner.requests`, `runner.input_batch.req_ids`, `runner.input_batch.logitsprocs`, `runner.drafter`,
`runner.effective_drafter_max_model_len`, and on what `sampling_repair` and `logit_bias` name.
`environment.check_release` keeps untested releases out.
"""

import logging
import time
from typing import Any

from workers.cloud.drafts_in_flight import HINT_KEY, DraftHint, DraftsInFlight
from workers.cloud.vllm_engine.logit_bias import SpeculativeLogitBias
from workers.cloud.vllm_engine.sampling_repair import repair_sampling

log = logging.getLogger(__name__)


class EdgeDraftProposer:
    """Proposes the tokens of each request's edge draft, from the position that its answer has reached in it."""

    def __init__(self, vllm_config: Any) -> None:
        self._max_proposed = vllm_config.speculative_config.num_speculative_tokens
        self._context_tokens = vllm_config.model_config.max_model_len
        self._drafts = DraftsInFlight()
        #: Requests that were in flight when proposing failed: one of their drafts may be the cause.
        self._without_draft: set[str] = set()
        #: Set by `WorkerExtension`, as soon as both exist.
        self.runner: Any = None

    def load_model(self, *_args: Any, **_kwargs: Any) -> None:
        """Loads nothing: the draft model runs at the edge."""

    def propose(
        self, sampled_token_ids: list[list[int]], num_tokens_no_spec: Any, token_ids_cpu: Any, slot_mappings: Any = None
    ) -> list[list[int]]:
        """Draft tokens for each row; none where the row wrote nothing in this step or has no draft.

        Never raises: a draft only makes an answer cheaper, and an exception here would end the engine.
        """
        del slot_mappings
        if self.runner is None:
            return [[] for _ in sampled_token_ids]
        try:
            return self._propose(sampled_token_ids, num_tokens_no_spec, token_ids_cpu)
        except Exception:
            log.exception("proposing_failed requests=%d", len(sampled_token_ids))
            self._drafts.forget_all_but(())
            self._without_draft = set(self.runner.requests)
            return [[] for _ in sampled_token_ids]

    def _propose(
        self, sampled_token_ids: list[list[int]], num_tokens_no_spec: Any, token_ids_cpu: Any
    ) -> list[list[int]]:
        rows = self.runner.input_batch.req_ids[: len(sampled_token_ids)]
        for row, request_id in enumerate(rows):
            if request_id not in self._drafts:
                self._begin(request_id)
            if sampled_token_ids[row]:
                self._advance(row, request_id, num_tokens_no_spec, token_ids_cpu)
        self._drafts.forget_all_but(self.runner.requests)
        self._without_draft &= self.runner.requests.keys()
        writing = [rows[row] for row, sampled in enumerate(sampled_token_ids) if sampled]
        proposed = self._drafts.propose(
            writing, now_s=time.perf_counter(), reads_prompts=len(writing) < len(sampled_token_ids)
        )
        return [proposed.get(rows[row], []) if sampled else [] for row, sampled in enumerate(sampled_token_ids)]

    def _begin(self, request_id: str) -> None:
        request = self.runner.requests[request_id]
        params = request.sampling_params
        packed = ((params.extra_args or {}) if params is not None else {}).get(HINT_KEY)
        if request_id in self._without_draft:
            packed = None
        room = self._context_tokens - request.num_prompt_tokens
        hint = DraftHint.unpack(packed) if packed else DraftHint()
        max_tokens = min(room, params.max_tokens or room) if params is not None else room
        self._drafts.begin(
            request_id,
            hint,
            max_tokens=max_tokens,
            max_proposed=self._max_proposed,
            prompt_tokens=request.prompt_token_ids or (),
        )

    def _advance(self, row: int, request_id: str, num_tokens: Any, token_ids: Any) -> None:
        prompt_tokens = self.runner.requests[request_id].num_prompt_tokens
        begin = prompt_tokens + self._drafts.num_written(request_id)
        self._drafts.advance(request_id, token_ids[row, begin : int(num_tokens[row])].tolist())


class WorkerExtension:
    """Mixed into vLLM's worker; called through `collective_rpc` once the engine is up."""

    model_runner: Any

    def bind_proposer(self) -> bool:
        """Give the proposer the runner and apply our repairs; whether sampling had to be repaired.

        vLLM proposes zeros where a draft model's own context would overflow; our proposer has no draft model, and
        stops at the end of the context by itself.
        """
        runner = self.model_runner
        runner.drafter.runner = runner
        runner.effective_drafter_max_model_len = runner.max_model_len + runner.num_spec_tokens + 1
        runner.input_batch.logitsprocs.non_argmax_invariant.append(SpeculativeLogitBias(runner.device))
        return repair_sampling()
