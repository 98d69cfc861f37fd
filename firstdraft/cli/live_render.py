"""An answer while it is generated: the draft at once, then replaced where the cloud corrects it. Pure."""

from dataclasses import dataclass, field
from enum import StrEnum

from schemas.events import AcceptedText, CorrectedText, Decision, Done, DraftText, Event, Started, WrittenText
from schemas.policy import Tier


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
