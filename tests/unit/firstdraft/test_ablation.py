import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.settings import AblationSettings, read_settings
from firstdraft import Inference
from firstdraft.cli.ablation import AblationFailed, as_json, body_for, summary
from firstdraft.cli.prompt_files import UnusableFile, read_prompts
from schemas.jobs import Job
from schemas.requests import JobRequest
from schemas.results import DraftStatistics, FinishReason, Models, Result, Usage

WAY = AblationSettings(name="way", description="a way", config_overrides={})


def result(tier: str, draft: DraftStatistics | None = None, **usage: int) -> Result:
    return Result(
        text="",
        finish_reason=FinishReason.STOP,
        tier=tier,
        policy="p",
        draft=draft,
        usage=Usage(**usage),
        models=Models(),
    )


def answered(result: Result, latency_ms: float) -> Inference:
    return Inference.of(Job(id="j", status="succeeded", policy="p", created_at=0.0), result, latency_ms)


def test_overrides_go_where_a_request_carries_them() -> None:
    overrides = {"requests.policy": "edge_only", "edge.confidence.threshold": 0.9, "cloud.draft_verifier.mode": "exact"}
    body = body_for({"prompt": "hi", "confidence": {"strategy": "margin"}}, overrides)
    assert body == {
        "prompt": "hi",
        "policy": "edge_only",
        "confidence": {"strategy": "margin", "threshold": 0.9},
        "acceptance": {"mode": "exact"},
    }
    assert JobRequest.model_validate(body).policy == "edge_only"


def test_an_override_leaves_the_prompt_that_it_was_given_alone() -> None:
    body = {"prompt": "hi", "confidence": {"strategy": "margin"}}
    body_for(body, {"edge.confidence.threshold": 0.9})
    assert body == {"prompt": "hi", "confidence": {"strategy": "margin"}}


def test_an_override_that_needs_a_restart_is_refused_by_name() -> None:
    with pytest.raises(AblationFailed, match=r"edge\.kv_cache\.max_size.*needs a restart"):
        body_for({"prompt": "hi"}, {"edge.kv_cache.max_size": 1})


def test_every_shipped_ablation_can_be_carried_by_a_request() -> None:
    settings = read_settings()
    bodies = {way.name: body_for({"prompt": "hi"}, way.config_overrides) for way in settings.experiments.ablations}
    assert set(bodies) == set(settings.policies)
    assert all(bodies[name]["policy"] == name for name in bodies)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("", "no prompt"), ("{", "line 1"), ('{"prompt": "a"}\n{"promt": "b"}', "line 2"), ('{"prompt": ""}', "line 1")],
)
def test_a_file_of_prompts_that_cannot_be_used_says_where(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "prompts.jsonl").write_text(text)
    with pytest.raises(UnusableFile, match=complaint):
        read_prompts(tmp_path / "prompts.jsonl")


def test_a_byte_order_mark_is_no_part_of_a_file_of_prompts(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('\ufeff{"prompt": "a\u2028b"}\n\n{"prompt": "ü"}\n', encoding="utf-8")
    assert [body["prompt"] for body in read_prompts(path)] == ["a\u2028b", "ü"]


def test_the_shipped_prompts_are_all_requests() -> None:
    assert len(read_prompts(Path("experiments/prompts.jsonl"))) == 20


def test_a_row_counts_only_verified_drafts_for_the_acceptance_rate() -> None:
    verified = DraftStatistics(drafted_tokens=10, accepted_tokens=6, verified=True)
    unverified = DraftStatistics(drafted_tokens=50)
    measured = [
        answered(result("edge", unverified), 100.0),
        answered(result("cloud", verified, cloud_completion_tokens=12, cloud_cached_tokens=4), 300.0),
    ]
    row = summary(WAY, measured, 2.0)
    assert row.acceptance_rate == 0.6
    assert (row.edge_share, row.requests_per_s, row.mean_latency_ms) == (0.5, 1.0, 200.0)
    assert (row.cloud_tokens_per_request, row.cloud_cached_tokens_per_request) == (6.0, 2.0)


def test_without_a_verified_draft_there_is_no_acceptance_rate() -> None:
    assert summary(WAY, [answered(result("edge"), 1.0)], 1.0).acceptance_rate is None


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50))
def test_the_95th_percentile_is_a_latency_that_occurred_and_at_most_5_percent_lie_above(latencies: list[float]) -> None:
    row = summary(WAY, [answered(result("edge"), latency) for latency in latencies], 1.0)
    assert row.p95_latency_ms in latencies
    assert sum(latency > row.p95_latency_ms for latency in latencies) <= 0.05 * len(latencies)


def test_the_json_document_is_one_line_and_holds_every_row() -> None:
    text = as_json([summary(WAY, [answered(result("edge"), 1.0)], 1.0)])
    assert "\n" not in text
    assert json.loads(text)["ablation"]["way"]["requests"] == 1
