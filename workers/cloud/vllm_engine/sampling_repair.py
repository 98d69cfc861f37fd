"""Repairs of sampling with drafts on CPUs, each applied only where a check shows that it is needed.

vLLM 0.32 without Triton hands each request's temperature, top-k and top-p to the rejection sampler through a C++
replacement that writes into a copy and discards it, so that the sampler divides by uninitialised memory and accepts
drafted tokens that it should reject. And where no request of a step has a proposed token, it takes the maximum of an
empty tensor of top-k values, which ends the engine. Neither affects greedy decoding. Runs in vLLM's worker process.
"""

import torch
from vllm.v1.sample import rejection_sampler
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p as _apply_top_k_top_p


def repair_sampling() -> bool:
    """Check both functions and replace those that are wrong; whether any was."""
    accepts_no_rows = _accepts_no_rows()
    if not accepts_no_rows:
        rejection_sampler.apply_top_k_top_p = _apply_to_some_rows
    if _expands_correctly():
        return not accepts_no_rows
    rejection_sampler.expand_batch_to_tokens = _expand
    if not _expands_correctly():
        raise RuntimeError("sampling with drafts is wrong in this release of vLLM, and our repair does not help")
    return True


def _accepts_no_rows() -> bool:
    """Whether top-k can be applied to logits without rows, as where no token is proposed."""
    device = torch.get_default_device()
    try:
        _apply_top_k_top_p(torch.empty((0, 8), device=device), torch.empty(0, dtype=torch.int32, device=device), None)
    except RuntimeError:
        return False
    return True


def _apply_to_some_rows(logits: torch.Tensor, k: torch.Tensor | None, p: torch.Tensor | None) -> torch.Tensor:
    """As the replaced function, but logits without rows are returned as they are."""
    kept: torch.Tensor = _apply_top_k_top_p(logits, k, p) if len(logits) else logits
    return kept


def _expands_correctly() -> bool:
    """Whether values per request are repeated for their tokens, with the marker for greedy requests replaced."""
    device = torch.get_default_device()
    cumulative = torch.tensor([2, 3, 6], dtype=torch.int32, device=device)
    for dtype, values in ((torch.float32, [0.7, 0.0, 1.3]), (torch.int32, [40, 0, 7])):
        given = torch.tensor(values, dtype=dtype, device=device)
        got = rejection_sampler.expand_batch_to_tokens(given, cumulative, 6, replace_from=0, replace_to=1)
        first, _, last = values
        if not torch.equal(got, torch.tensor([first, first, 1, last, last, last], dtype=dtype, device=device)):
            return False
    return True


def _expand(
    x: torch.Tensor, cu_num_tokens: torch.Tensor, num_tokens: int, replace_from: int = 0, replace_to: int = 0
) -> torch.Tensor:
    """As the replaced function promises: `x[i]` once for each token of request `i`."""
    del num_tokens
    counts = torch.diff(cu_num_tokens, prepend=cu_num_tokens.new_zeros(1)).long()
    expanded = torch.repeat_interleave(x, counts)
    if replace_from == replace_to:
        return expanded
    return torch.where(expanded == replace_from, torch.full_like(expanded, replace_to), expanded)
