"""Which models the default confidence threshold was calibrated with, and whether a worker's model is one. Pure.

Confidence differs between models, so that a threshold is meaningless for models that it was not measured with. A worker
with another model logs a warning when it starts.
"""

import re

from schemas.policy import Tier

#: The models with which the default of `edge.confidence.threshold` was measured (docs/log.md, "Confidence threshold").
MEASURED_WITH = {Tier.EDGE: "Qwen2.5-Coder-0.5B-Instruct", Tier.CLOUD: "Qwen2.5-Coder-1.5B-Instruct"}


def is_measured(tier: Tier, model_name: str) -> bool:
    """Whether this is the model that was measured for the tier; case and punctuation of the name do not matter."""
    return _bare(MEASURED_WITH[tier]) in _bare(model_name)


def _bare(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
