"""A request's sampling options as vLLM's own. Knows nothing of engines or requests in flight."""

from typing import Any

from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

from schemas.requests import Sampling
from workers.cloud.vllm_engine.keys import BIASES_KEY, HINT_KEY
from workers.constraints import lark_of


def sampling_params(
    sampling: Sampling, *, max_tokens: int, use_cache: bool, hint: dict[str, Any] | None
) -> SamplingParams:
    """Parameters of vLLM; `hint` travels to the proposer. `top_logprobs` 0 asks for the chosen token's alone."""
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
        structured_outputs=_structure(sampling),
        skip_reading_prefix_cache=None if use_cache else True,
        output_kind=RequestOutputKind.DELTA,
        extra_args=extra or None,
        skip_clone=True,
    )


def _structure(sampling: Sampling) -> StructuredOutputsParams | None:
    """The same grammar that the edge's drafts keep, schemas included: vLLM takes llguidance's own dialect for one."""
    lark = lark_of(sampling)
    return None if lark is None else StructuredOutputsParams(grammar=lark)


def scoring_params(top_logprobs: int) -> SamplingParams:
    """For the pass that scores a draft as part of the prompt: each token's log-probability and those of the likeliest.

    They are the favourite, and as many as the request wants to see.
    """
    return SamplingParams(
        max_tokens=1,
        temperature=0.0,
        prompt_logprobs=max(1, top_logprobs),
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
