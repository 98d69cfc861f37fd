"""Which models the default confidence threshold was calibrated with, and whether a worker's is one of them. Pure.

Confidence differs from model to model, so that a threshold means nothing for models that it was not measured with: a
worker with such a model logs a warning when it starts.
"""

import re

from schemas.policy import Tier

#: The models with which the default of `edge.confidence.threshold` was measured (docs/log.md, "Confidence threshold").
MEASURED_WITH = {Tier.EDGE: "Qwen2.5-Coder-0.5B-Instruct", Tier.CLOUD: "Qwen2.5-Coder-1.5B-Instruct"}


def is_measured(tier: Tier, model_name: str) -> bool:
    """Whether the tier's model is the one that was measured; case and punctuation of its name do not matter."""
    return _bare(MEASURED_WITH[tier]) in _bare(model_name)


def _bare(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
