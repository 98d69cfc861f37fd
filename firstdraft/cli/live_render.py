"""An answer as it is written: the draft at once, repainted where the cloud corrects it. Pure.

Text has a kind for each character, so that a terminal can show which words the cloud corrected.
"""

from dataclasses import dataclass, field
from enum import StrEnum

from schemas.events import AcceptedText, CorrectedText, Decision, Done, DraftText, Event, Started, WrittenText
from schemas.policy import Tier


class Kind(StrEnum):
    """Where a piece of text comes from. Values are what rich calls the style."""

    #: The edge's, not judged yet.
    DRAFT = "dim"
    #: Stands: a trusted draft, or what the cloud accepted of one.
    STANDS = "default"
    #: The cloud's own, where the draft had something else.
    CORRECTED = "bold green"


Piece = tuple[str, Kind]


@dataclass
class Painting:
    """What is known of an answer so far."""

    _draft: str = ""
    _answer: list[Piece] = field(default_factory=list)
    _trusted: bool = False

    def take(self, event: Event) -> None:
        """Let the event change the picture."""
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
                self._answer.append((event.text, Kind.STANDS))
            case CorrectedText():
                self._answer.append((event.text, Kind.CORRECTED))
            case Done(result=result):
                if not self._trusted and self._answer:
                    self._draft = ""  # what is left of it was not wanted
                if "".join(text for text, _ in self.pieces()) != result.text:
                    self._draft, self._answer, self._trusted = "", [(result.text, Kind.STANDS)], False

    def pieces(self) -> list[Piece]:
        """The text to show: what the cloud has said, then what is left of the draft."""
        if self._trusted:
            return [(self._draft, Kind.STANDS)]
        said = sum(len(text) for text, _ in self._answer)
        rest = [(self._draft[said:], Kind.DRAFT)] if said < len(self._draft) else []
        return [*self._answer, *rest]
