"""Biases on logits together with speculation, which vLLM 0.32 refuses for its own `logit_bias`.

Runs in vLLM's worker process. vLLM's rejection sampler applies only one kind of logits processor to the rows of
proposed tokens, `MinTokensLogitsProcessor`; ours is a subclass for that reason alone. Requests carry their biases in
`extra_args`.
"""

from collections.abc import Iterator
from typing import Any

import torch
from vllm.v1.sample.logits_processor.builtin import MinTokensLogitsProcessor, process_dict_updates

#: Where a request's `extra_args` hold its pairs of token id and bias.
BIASES_KEY = "firstdraft_logit_bias"


class SpeculativeLogitBias(MinTokensLogitsProcessor):
    """Adds each request's biases to all its rows of logits, including those of proposed tokens."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._biases: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def update_state(self, batch_update: Any) -> None:
        """Follow requests as they enter, leave and move within the batch."""
        process_dict_updates(self._biases, batch_update, lambda params, _prompt, _output: self._biases_of(params))

    def _biases_of(self, params: Any) -> tuple[torch.Tensor, torch.Tensor] | None:
        pairs = (params.extra_args or {}).get(BIASES_KEY)
        if not pairs:
            return None
        tokens = torch.tensor([token for token, _ in pairs], dtype=torch.long, device=self._device)
        return tokens, torch.tensor([bias for _, bias in pairs], dtype=torch.float32, device=self._device)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits with one row per request."""
        for row, (tokens, biases) in self._valid_biases(logits):
            logits[row, tokens] += biases
        return logits

    def apply_with_spec_decode(self, logits: torch.Tensor, num_draft_tokens: list[int]) -> torch.Tensor:
        """Logits with one row per proposed token of each request."""
        begins = [0]
        for count in num_draft_tokens:
            begins.append(begins[-1] + count)
        for request, (tokens, biases) in self._valid_biases(logits):
            if request < len(num_draft_tokens):
                logits[begins[request] : begins[request + 1], tokens] += biases
        return logits

    def _valid_biases(self, logits: torch.Tensor) -> Iterator[tuple[int, tuple[torch.Tensor, torch.Tensor]]]:
        """Each request's biases on tokens that the logits have.

        `options` has refused others; an index out of range here would end the engine.
        """
        width = logits.shape[-1]
        for row, (tokens, biases) in self._biases.items():
            valid = (tokens >= 0) & (tokens < width)
            yield row, (tokens[valid], biases[valid])
