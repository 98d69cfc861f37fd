"""A draft: what the edge wrote, token by token, and how sure it was of each."""

from typing import Self

from pydantic import Field, model_validator

from schemas.message import Wire
from schemas.results import ConfidenceReport, FinishReason, TokenLogprob


class TokenFigures(Wire):
    """Columns with one value for each drafted token, computed from the raw logits before sampling."""

    #: Probability of the sampled token.
    probability: tuple[float, ...] = ()
    #: The same with the fitted temperature (Guo et al., ICML 2017).
    scaled_probability: tuple[float, ...] = ()
    #: Probability of the likeliest token minus that of the second.
    margin: tuple[float, ...] = ()
    #: Entropy divided by the log of the vocabulary's size: 0 is certain, 1 uniform.
    normalised_entropy: tuple[float, ...] = ()
    #: Sum of the probabilities of the k likeliest tokens.
    top_k_mass: tuple[float, ...] = ()

    @model_validator(mode="after")
    def _is_a_table(self) -> Self:
        if len({len(getattr(self, name)) for name in TokenFigures.model_fields}) > 1:
            raise ValueError("the columns differ in length")
        return self

    def __len__(self) -> int:
        return len(self.probability)


class Draft(Wire):
    """What crosses from the edge to the cloud when a request escalates.

    `token_ids` includes the end-of-text token if the edge wrote one: the cloud verifies that too. `figures` has one row
    for each of `token_ids`.
    """

    text: str
    token_ids: tuple[int, ...]
    figures: TokenFigures
    finish_reason: FinishReason
    #: Whether drafting stopped early, because the confidence could no longer reach the threshold.
    escalated_early: bool = False
    prompt_tokens: int = Field(ge=1)
    #: Prompt tokens that the edge read from its prefix cache.
    cached_tokens: int = Field(0, ge=0)
    model: str
    #: Fingerprint of the vocabulary (workers/runtime/vocabulary.py): the same fingerprint means the same token ids.
    vocabulary: str
    confidence: ConfidenceReport | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
