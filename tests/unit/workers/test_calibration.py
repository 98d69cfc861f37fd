import pytest

from schemas.policy import Tier
from workers.runtime.calibration import is_measured


@pytest.mark.parametrize(
    ("tier", "name", "expected"),
    [
        (Tier.EDGE, "Qwen2.5 Coder 0.5B Instruct", True),
        (Tier.EDGE, "qwen2.5-coder-0.5b-instruct-q4_0", True),
        (Tier.EDGE, "Qwen2.5-Coder-1.5B-Instruct", False),
        (Tier.EDGE, "SmolLM2-135M-Instruct", False),
        (Tier.CLOUD, "Qwen2.5-Coder-1.5B-Instruct", True),
        (Tier.CLOUD, "Qwen/Qwen2.5-Coder-1.5B-Instruct", True),
        (Tier.CLOUD, "Qwen2.5-Coder-0.5B-Instruct", False),
        (Tier.CLOUD, "Qwen2.5-Coder-32B-Instruct", False),
    ],
)
def test_a_model_is_known_by_its_name_however_it_is_spelt(tier, name, expected):
    assert is_measured(tier, name) is expected
