"""Shows answers and their figures in a terminal."""

from collections.abc import Iterable

from rich.console import Console
from rich.live import Live
from rich.text import Text

from firstdraft.cli.live_render import LiveAnswer
from schemas.events import Done, Event, Failed
from schemas.results import Result


def show_live(console: Console, events: Iterable[Event]) -> Done | Failed | None:
    """Show an answer while it is generated. Returns its final event; None for a cancelled job."""
    answer, ended = LiveAnswer(), None
    with Live(Text(""), console=console, auto_refresh=False, vertical_overflow="visible") as live:
        for event in events:
            answer.take(event)
            live.update(Text.assemble(*((text, kind.value) for text, kind in answer.pieces())), refresh=True)
            if isinstance(event, Done | Failed):
                ended = event
    return ended


def figures(result: Result) -> Text:
    """One line on how an answer was made: tier, time, tokens, confidence, acceptance."""
    parts = [f"{result.tier}", f"{result.timings.total_ms:.0f} ms", f"{result.usage.completion_tokens} tokens"]
    if result.confidence is not None:
        parts.append(f"confidence {result.confidence.value:.2f}")
    if result.draft is not None and result.draft.acceptance_rate is not None:
        parts.append(f"{result.draft.acceptance_rate:.0%} of the draft accepted")
    return Text(" · ".join(parts), style="dim")
