"""A request's sampling options as vLLM's own. Knows nothing of engines or requests in flight."""

from typing import Any

from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

from schemas.requests import Sampling
from workers.cloud.drafts_in_flight import HINT_KEY
from workers.cloud.vllm_engine.logit_bias import BIASES_KEY


def sampling_params(
    sampling: Sampling, *, lark: str | None, max_tokens: int, use_cache: bool, hint: dict[str, Any] | None
) -> SamplingParams:
    """Parameters for writing an answer; `hint` travels to the proposer.

    `lark` is the answer's grammar in llguidance's dialect. JSON schemas come as one too, so that the answer follows the
    same grammar as the edge's draft.
    """
    extra: dict[str, Any] = {HINT_KEY: hint} if hint else {}
    if sampling.logit_bias:
        extra[BIASES_KEY] = [[token, bias] for token, bias in sampling.logit_bias.items()]
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        seed=sampling.seed,
        stop=list(sampling.stop),
        repetition_penalty=sampling.repetition_penalty,
        frequency_penalty=sampling.frequency_penalty,
        presence_penalty=sampling.presence_penalty,
        logprobs=sampling.top_logprobs if sampling.logprobs else None,
        structured_outputs=None if lark is None else StructuredOutputsParams(grammar=lark),
        skip_reading_prefix_cache=None if use_cache else True,
        output_kind=RequestOutputKind.DELTA,
        extra_args=extra or None,
        skip_clone=True,
    )


def scoring_params(top_logprobs: int) -> SamplingParams:
    """Parameters for scoring a draft as part of the prompt.

    vLLM then returns each token's log-probability and those of the likeliest: as many as the request asks for, at
    least one.
    """
    return SamplingParams(
        max_tokens=1,
        temperature=0.0,
        prompt_logprobs=max(1, top_logprobs),
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
