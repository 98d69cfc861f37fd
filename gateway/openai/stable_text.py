"""Which of a job's text will stand: what an OpenAI-style stream may send, since it cannot take anything back. Pure.

A draft stands once the decision says so, or from the first where no cloud is to judge it; the cloud's text stands as
it is written. A worker that was lost writes its text anew: what was sent is then waited for and sent on from there.
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
    """The text that was written anew is another than the one that was sent. The stream cannot go on."""


class StableText:
    """One job's text, event by event."""

    def __init__(self, policy: Policy) -> None:
        self._edge_alone = not policy.has(Tier.CLOUD)
        self._draft = ""
        self._answer = ""
        self._sent = ""

    def take(self, event: Event) -> str:
        """The text that stands since the last event and was not given yet. Raises `Diverged`."""
        match event:
            case Started(tier=Tier.EDGE):
                self._draft = ""
            case Started():
                self._answer = ""
            case DraftText():
                self._draft = self._draft[: event.position] + event.text
                return self._send(self._draft) if self._edge_alone else ""
            case Decision(escalated=False):
                return self._send(self._draft)
            case AcceptedText() | CorrectedText() | WrittenText():
                self._answer = self._answer[: event.position] + event.text
                return self._send(self._answer)
            case Done():
                if not event.result.text.startswith(self._sent):
                    raise Diverged("the answer is another than the text that was sent")
                return self._send(event.result.text)
        return ""

    def _send(self, text: str) -> str:
        """What of the text is new; nothing while it is still shorter than what was sent."""
        common = min(len(text), len(self._sent))
        if text[:common] != self._sent[:common]:
            raise Diverged("the text was written anew and became another than the text that was sent")
        new = text[len(self._sent) :]
        self._sent += new
        return new
