"""Policies as data: which tiers may answer a request, and what happens between them."""

from enum import StrEnum
from typing import Self

from pydantic import model_validator

from schemas.message import Wire


class Tier(StrEnum):
    """Where a model runs: a small one at the edge, a large one in the cloud."""

    EDGE = "edge"
    CLOUD = "cloud"


class Policy(Wire):
    """One row of the policy table (docs/architecture.md)."""

    name: str
    description: str = ""
    tiers: tuple[Tier, ...]
    #: Whether a confident draft is the answer. Otherwise every draft escalates, if there is a cloud tier.
    confidence_decides: bool
    #: Whether the cloud verifies the draft; otherwise it writes the answer without one.
    verify_draft: bool
    #: Whether the request may read and fill the KV caches of both tiers.
    kv_caches: bool

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if not self.tiers or len(set(self.tiers)) != len(self.tiers):
            raise ValueError(f"policy {self.name!r}: tiers must name edge, cloud or both, once each")
        two_tiers = len(self.tiers) == 2
        if not two_tiers and (self.confidence_decides or self.verify_draft):
            raise ValueError(f"policy {self.name!r}: with one tier there is nothing to decide or verify")
        return self

    @property
    def first_tier(self) -> Tier:
        """The tier that begins the request."""
        return Tier.EDGE if self.has(Tier.EDGE) else Tier.CLOUD

    def has(self, tier: Tier) -> bool:
        """Whether the tier may answer."""
        return tier in self.tiers
