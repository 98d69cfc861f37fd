"""A request's sampling options as vLLM's own. Knows nothing of engines or requests in flight."""

from typing import Any

from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

from schemas.requests import Sampling


def sampling_params(
    sampling: Sampling, *, max_tokens: int, use_cache: bool, hint: dict[str, Any] | None
) -> SamplingParams:
    """Parameters of vLLM; `hint` travels to the proposer. `top_logprobs` 0 asks for the chosen token's alone."""
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
        logit_bias=dict(sampling.logit_bias) or None,
        logprobs=sampling.top_logprobs if sampling.logprobs else None,
        structured_outputs=_structure(sampling),
        skip_reading_prefix_cache=None if use_cache else True,
        output_kind=RequestOutputKind.DELTA,
        extra_args={"firstdraft": hint} if hint else None,
        skip_clone=True,
    )


def _structure(sampling: Sampling) -> StructuredOutputsParams | None:
    if sampling.grammar is not None:
        return StructuredOutputsParams(grammar=sampling.grammar)
    if sampling.json_schema is not None:
        return StructuredOutputsParams(json=sampling.json_schema)
    return None
