"""Shows answers in a terminal while they are generated: the draft at once, then the corrections in its place."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from rich.console import Console
from rich.live import Live
from rich.text import Text

from schemas.events import AcceptedText, CorrectedText, Decision, Done, DraftText, Event, Failed, Started, WrittenText
from schemas.policy import Tier
from schemas.results import Result


class Kind(StrEnum):
    """Where a piece of text comes from. The values are rich's styles."""

    #: The draft, not accepted yet.
    DRAFT = "dim"
    #: Part of the answer: a trusted draft, or what the cloud accepted or generated.
    ANSWER = "default"
    #: The cloud's, in place of what the draft had there.
    CORRECTED = "bold green"


Piece = tuple[str, Kind]


@dataclass
class LiveAnswer:
    """What is known of an answer so far."""

    _draft: str = ""
    _answer: list[Piece] = field(default_factory=list)
    _trusted: bool = False

    def take(self, event: Event) -> None:
        """Update the answer with the next event."""
        match event:
            case Started(tier=Tier.EDGE):
                self._draft = ""
            case Started():
                self._answer = []
            case DraftText():
                self._draft = self._draft[: event.position] + event.text
            case Decision():
                self._trusted = not event.escalated
            case AcceptedText() | WrittenText():
                self._answer.append((event.text, Kind.ANSWER))
            case CorrectedText():
                self._answer.append((event.text, Kind.CORRECTED))
            case Done(result=result):
                if not self._trusted and self._answer:
                    self._draft = ""  # the rest of it was rejected
                if "".join(text for text, _ in self.pieces()) != result.text:
                    self._draft, self._answer, self._trusted = "", [(result.text, Kind.ANSWER)], False

    def pieces(self) -> list[Piece]:
        """The text to show: what the cloud has accepted or written, then the rest of the draft."""
        if self._trusted:
            return [(self._draft, Kind.ANSWER)]
        position = sum(len(text) for text, _ in self._answer)
        rest = [(self._draft[position:], Kind.DRAFT)] if position < len(self._draft) else []
        return [*self._answer, *rest]


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
