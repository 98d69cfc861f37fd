"""Which of a job's text is final. An OpenAI-style stream sends only that, since it cannot take text back. Pure.

A draft is final once the decision says so, or at once where there is no cloud tier; the cloud's text is final as it is
written. If a worker is lost, another one writes the text again: the stream goes on where the new text exceeds the old.
"""

from schemas.events import (
    AcceptedText,
    CorrectedText,
    Decision,
    Done,
    DraftText,
    Event,
    Started,
    WrittenText,
)
from schemas.policy import Policy, Tier


class Diverged(Exception):
    """The text was written again and differs from what was sent. The stream cannot go on."""


class StableText:
    """Follows one job's text, event by event."""

    def __init__(self, policy: Policy) -> None:
        self._is_draft_final = not policy.has(Tier.CLOUD)
        self._draft = ""
        self._answer = ""
        self._sent = ""

    def take(self, event: Event) -> str:
        """The text that has become final with this event. Raises `Diverged`."""
        match event:
            case Started(tier=Tier.EDGE):
                self._draft = ""
            case Started():
                self._answer = ""
            case DraftText():
                self._draft = self._draft[: event.position] + event.text
                return self._send(self._draft) if self._is_draft_final else ""
            case Decision(escalated=False):
                return self._send(self._draft)
            case AcceptedText() | CorrectedText() | WrittenText():
                self._answer = self._answer[: event.position] + event.text
                return self._send(self._answer)
            case Done():
                if not event.result.text.startswith(self._sent):
                    raise Diverged("the answer differs from the text that was sent")
                return self._send(event.result.text)
        return ""

    def _send(self, text: str) -> str:
        """The text beyond what was sent; empty while the text is shorter than that."""
        common = min(len(text), len(self._sent))
        if text[:common] != self._sent[:common]:
            raise Diverged("the text was written again and differs from the text that was sent")
        new = text[len(self._sent) :]
        self._sent += new
        return new
