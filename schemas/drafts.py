"""A draft: what the edge wrote, token by token, and how sure it was of each."""

from typing import Self

from pydantic import Field, model_validator

from schemas.message import Wire
from schemas.results import ConfidenceReport, FinishReason, TokenLogprob


class TokenFigures(Wire):
    """Columns of figures, one value a drafted token, from the raw logits before sampling."""

    #: Probability of the chosen token.
    probability: tuple[float, ...] = ()
    #: The same under the fitted temperature (Guo et al., ICML 2017).
    scaled_probability: tuple[float, ...] = ()
    #: Probability of the first choice minus that of the second.
    margin: tuple[float, ...] = ()
    #: Entropy over log of the vocabulary's size: 0 certain, 1 uniform.
    normalised_entropy: tuple[float, ...] = ()
    #: Probability of the k likeliest tokens together.
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

    `token_ids` ends with the end-of-text token where the edge wrote one: that too is to be verified. `figures` has
    one row for each of `token_ids`.
    """

    text: str
    token_ids: tuple[int, ...]
    figures: TokenFigures
    finish_reason: FinishReason
    #: Whether the draft was given up before its end, because it could no longer become sure.
    escalated_early: bool = False
    prompt_tokens: int = Field(ge=1)
    #: Prompt tokens that the edge's prefix cache spared.
    cached_tokens: int = Field(0, ge=0)
    model: str
    #: Fingerprint of the vocabulary (workers/runtime/vocabulary.py): token ids mean the same where it is equal.
    vocabulary: str
    confidence: ConfidenceReport | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
