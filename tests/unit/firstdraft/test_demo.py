import io
import socket

import pytest
from rich.console import Console

from firstdraft import Unreachable
from firstdraft.cli.demo import _panel, run_demo
from schemas.results import ConfidenceReport, DraftStatistics, FinishReason, Models, Result, Timings, Usage


def shown(result: Result, width: int = 100) -> str:
    """The answer as it is printed where nobody sees colours."""
    console = Console(file=io.StringIO(), width=width)
    console.print(_panel("Why [sic]?", result))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def answered(tier: str, draft: DraftStatistics | None, sure: float | None) -> Result:
    report = (
        None if sure is None else ConfidenceReport(value=sure, threshold=0.65, strategy="ensemble", sure=sure > 0.65)
    )
    return Result(
        text=" Because [so]. ",
        finish_reason=FinishReason.STOP,
        tier=tier,
        policy="baseline",
        confidence=report,
        draft=draft,
        usage=Usage(),
        timings=Timings(queued_ms=10, drafting_ms=200, verify_queued_ms=5, verifying_ms=3000),
        models=Models(),
    )


def test_a_verified_answer_shows_all_that_became_of_its_draft() -> None:
    draft = DraftStatistics(drafted_tokens=16, accepted_tokens=7, rewritten_tokens=5, verified=True, cloud_steps=9)
    text = shown(answered("cloud", draft, 0.62))
    assert "cloud" in text
    assert "0.62 (threshold 0.65)" in text
    assert "16 drafted, 7 accepted, 5 rewritten in 9 cloud steps" in text
    assert "queued 15 ms, drafting 200 ms, verifying 3000 ms" in text


def test_an_answer_from_the_edge_was_not_verified_and_says_no_more() -> None:
    text = shown(answered("edge", DraftStatistics(drafted_tokens=16), 0.7))
    assert "16 drafted" in text
    assert "accepted" not in text


def test_an_answer_written_from_nothing_has_neither_confidence_nor_draft() -> None:
    text = shown(answered("cloud", None, None))
    assert "confidence" not in text
    assert "drafted" not in text


def test_brackets_in_prompts_and_answers_are_panel_as_they_are() -> None:
    text = shown(answered("edge", None, None))
    assert "Why [sic]?" in text
    assert "Because [so]." in text


def test_a_gateway_that_does_not_answer_ends_the_demo_with_its_address() -> None:
    with socket.socket() as held:  # bound, and nobody listens
        held.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{held.getsockname()[1]}"
        with pytest.raises(Unreachable, match=url):
            run_demo(url, Console(file=io.StringIO()), ["hi"])
