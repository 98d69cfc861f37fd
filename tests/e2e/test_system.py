"""The way of a request through every process, on real engines."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from schemas.events import AcceptedText, CorrectedText, DraftText, EventKind, WrittenText
from schemas.policy import Tier
from tests.e2e.conftest import System
from tests.polling import until

pytestmark = pytest.mark.e2e

PROMPTS = [
    "What is the capital of France?",
    "Name three things that are made of copper.",
    "Explain in two sentences why the sky is blue.",
    "Who wrote Romeo and Juliet?",
    "List the days of the week.",
    "What does a compass do?",
    "Give me a short recipe for pancakes.",
    "Translate 'good morning' into Spanish.",
    "Why do leaves change colour in autumn?",
    "Write a Python function that adds two numbers.",
    "What is the opposite of 'generous'?",
    "Name a mammal that can fly.",
    "Describe the taste of a lemon.",
    "What is the largest planet?",
    "Write a sentence about a lighthouse.",
    "How many legs does a spider have?",
    "Count from one to ten.",
    "What is a haiku?",
    "Why is the sea salty?",
    "Say hello in three languages.",
]
#: Thresholds at which every draft, or none, is sure.
ALWAYS, NEVER = {"threshold": 0.0}, {"threshold": 1.0}
#: SmolLM2's `<|im_end|>`, on both tiers.
END_OF_TURN = "2"
FINAL = {EventKind.DONE, EventKind.FAILED, EventKind.CANCELLED}


def answered_at(system: System, tier: str) -> int:
    return system.stats()["counters"].get(f"answered_{tier}", 0)


def test_a_sure_draft_is_the_answer_and_the_cloud_does_no_work(system: System) -> None:
    before = answered_at(system, "cloud")
    result = system.ask(PROMPTS[0], confidence=ALWAYS)
    assert result.tier == Tier.EDGE
    assert result.confidence is not None
    assert result.confidence.sure
    assert result.confidence.parts.keys() == {"max_prob", "entropy", "margin"}
    assert "Paris" in result.text
    assert result.usage.cloud_completion_tokens == 0
    assert result.models.cloud is None
    assert answered_at(system, "cloud") == before


def test_an_unsure_draft_is_verified(system: System) -> None:
    result = system.ask(PROMPTS[1], confidence=NEVER)
    assert result.tier == Tier.CLOUD
    assert result.draft is not None
    assert result.draft.verified
    assert result.draft.lossless
    assert result.draft.drafted_tokens > 0
    assert result.draft.acceptance_rate == pytest.approx(result.draft.accepted_tokens / result.draft.drafted_tokens)
    assert result.draft.accepted_tokens + result.draft.rewritten_tokens == result.usage.completion_tokens
    assert result.timings.drafting_ms > 0
    assert result.timings.verifying_ms > 0


def test_a_verified_answer_is_the_cloud_models_own_token_for_token(system: System) -> None:
    def token_ids(prompt: str, policy: str) -> list[int]:
        result = system.ask(prompt, policy=policy, logprobs=True)
        assert b"".join(bytes(token.bytes) for token in result.logprobs).decode() == result.text
        # Counted, and no part of the text: the end of the turn, or a character that the limit cut in its middle.
        left_out = result.usage.completion_tokens - len(result.logprobs)
        assert left_out == 1 if result.finish_reason == "stop" else 0 <= left_out <= 3
        return [token.token_id for token in result.logprobs]

    different = [p for p in PROMPTS if token_ids(p, "no_confidence") != token_ids(p, "cloud_only")]
    assert different == []


@pytest.mark.parametrize(
    ("policy", "options", "tier", "drafted", "verified"),
    [
        ("baseline", {"confidence": ALWAYS}, Tier.EDGE, True, False),
        ("baseline", {"confidence": NEVER}, Tier.CLOUD, True, True),
        ("no_confidence", {"confidence": ALWAYS}, Tier.CLOUD, True, True),
        ("no_draft_verify", {"confidence": ALWAYS}, Tier.EDGE, True, False),
        ("no_draft_verify", {"confidence": NEVER}, Tier.CLOUD, True, False),
        ("no_kv_cache", {"confidence": NEVER}, Tier.CLOUD, True, True),
        ("edge_only", {"confidence": NEVER}, Tier.EDGE, True, False),
        ("cloud_only", {"confidence": ALWAYS}, Tier.CLOUD, False, False),
    ],
)
def test_each_policy_does_what_its_row_says(system: System, policy, options, tier, drafted, verified) -> None:
    result = system.ask("What does a compass do?", policy=policy, **options)
    assert (result.policy, result.tier) == (policy, tier)
    assert (result.draft is not None) == drafted
    assert (result.draft is not None and result.draft.verified) == verified


def test_kv_caches_spare_a_repeated_prompt_its_tokens_and_are_really_off_where_the_policy_says_so(
    system: System,
) -> None:
    prompt = "Answer briefly and kindly, as a librarian would. " * 12 + "What is a book?"
    for _ in range(2):
        system.ask(prompt, policy="no_confidence", max_tokens=8)
    warm = system.ask(prompt, policy="no_confidence", max_tokens=8).usage
    assert warm.edge_cached_tokens > 64
    assert warm.cloud_cached_tokens > 64
    cold = system.ask(prompt, policy="no_kv_cache", max_tokens=8, confidence=NEVER).usage
    assert (cold.edge_cached_tokens, cold.cloud_cached_tokens) == (0, 0)


def test_both_tiers_tell_what_their_caches_hold(system: System) -> None:
    prompt = "Here is a long rule about tides, moons and harbours that I shall repeat. " * 12
    system.ask(prompt, policy="no_confidence", max_tokens=4)

    def holders() -> dict[str, int]:
        found = system.client.post("/v1/cache/holders", json={"prompt": prompt}).json()["holders"]
        return {holder["tier"]: holder["held_bytes"] for holder in found}

    until(lambda: holders().keys() == {"edge", "cloud"}, "both tiers hold it", within_s=20.0)
    assert all(len(prompt) / 2 < held <= len(prompt) + 16 for held in holders().values())


def test_thirty_two_requests_at_once_each_end_in_exactly_one_outcome(system: System) -> None:
    before = system.stats()["counters"]
    with ThreadPoolExecutor(32) as pool:
        ids = list(pool.map(lambda i: system.submit(PROMPTS[i % len(PROMPTS)], max_tokens=16), range(32)))
        results = list(pool.map(system.result, ids))
    assert len(set(ids)) == len(results) == 32
    for job_id in ids:
        assert [event.type for event in system.events(job_id) if event.type in FINAL] == [EventKind.DONE]
    after = system.stats()["counters"]
    answered = sum(after.get(key, 0) - before.get(key, 0) for key in ("answered_edge", "answered_cloud"))
    assert answered == after["accepted"] - before["accepted"] == 32


def test_events_tell_the_whole_way_in_order(system: System) -> None:
    job_id = system.submit(PROMPTS[2], confidence=NEVER)
    result = system.result(job_id)
    events = system.events(job_id)
    kinds = [event.type for event in events]
    landmarks = [kind for kind in kinds if kind in {"queued", "started", "decision", "done"}]
    assert landmarks == ["queued", "started", "decision", "queued", "started", "done"]
    assert max(i for i, kind in enumerate(kinds) if kind == "draft") < kinds.index("decision")
    answer = [e for e in events if isinstance(e, AcceptedText | CorrectedText | WrittenText)]
    assert "".join(event.text for event in answer) == result.text
    assert [event.position for event in answer] == [
        sum(len(before.text) for before in answer[:i]) for i in range(len(answer))
    ]
    drafted = [event for event in events if isinstance(event, DraftText)]
    assert drafted[0].position == 0
    assert all(event.text for event in drafted)


def test_a_prompt_longer_than_the_context_fails_with_the_numbers(system: System) -> None:
    job = until(
        lambda: (job := system.job(system.submit("word " * 9000), wait_s=10)).failure and job, "a failure", within_s=60
    )
    assert job.status == "failed"
    assert job.failure.kind == "prompt_too_long"
    assert "4096" in job.failure.message


def test_bad_input_is_refused_with_the_field_and_the_value(system: System) -> None:
    answer = system.client.post("/v1/jobs", json={"prompt": "hello", "temperature": 3.5})
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["errors"][0]["field"] == "temperature"
    assert answer.json()["errors"][0]["value"] == 3.5


def test_a_cancelled_request_stops_in_the_engine(system: System) -> None:
    job_id = system.submit("Write a very long story about a whale.", policy="cloud_only", max_tokens=1000)
    until(lambda: system.job(job_id).status == "verifying", "the cloud at work", within_s=60)
    assert system.client.delete(f"/v1/jobs/{job_id}").json()["status"] == "cancelled"

    def idle() -> bool:
        return all(worker["in_flight"] == 0 for worker in system.stats()["workers"])

    until(idle, "an idle engine", within_s=10)
    assert system.job(job_id).status == "cancelled"


def test_a_killed_edge_worker_comes_back_and_its_requests_are_answered(system: System) -> None:
    worker = next(w for w in system.stats()["workers"] if w["tier"] == "edge")
    pid = int(worker["worker"].rsplit("-", 1)[1])
    ids = [system.submit(prompt, policy="edge_only", max_tokens=64) for prompt in PROMPTS[:8]]
    until(lambda: any(system.job(job_id).status == "drafting" for job_id in ids), "drafting", within_s=60)
    os.kill(pid, signal.SIGKILL)
    assert all(system.result(job_id).tier == Tier.EDGE for job_id in ids)
    until(system.is_ready, "a new edge worker", within_s=60)
    assert not psutil.pid_exists(pid)


@pytest.mark.parametrize("policy", ["edge_only", "cloud_only", "baseline", "no_confidence", "no_draft_verify"])
def test_an_answer_without_text_is_an_answer(system: System, policy) -> None:
    question = {"role": "user", "content": "Name a metal."}
    taken_over = system.stats()["counters"].get("taken_over", 0)
    begins = {system.ask(question["content"], policy=tier).text[0] for tier in ("edge_only", "cloud_only")}
    for options in ({"stop": sorted(begins)}, {"logit_bias": {END_OF_TURN: 100}}):
        body = {"model": f"firstdraft:{policy}", "messages": [question], "max_tokens": 32, **options}
        answer = system.client.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        (choice,) = answer.json()["choices"]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("", "stop")
        again = {**body, "messages": [question, choice["message"], {"role": "user", "content": "And now?"}]}
        assert system.client.post("/v1/chat/completions", json=again).status_code == 200
    assert system.stats()["counters"].get("taken_over", 0) == taken_over, "no lease had to lapse"
