"""One answer as it comes out of vLLM: its tokens, its text, where it stands in its draft, and who is told."""

from collections.abc import Sequence
from typing import Any

from vllm.outputs import RequestOutput

from schemas.results import TokenLogprob
from workers.cloud.alignment import Alignment
from workers.cloud.answering import Listener
from workers.cloud.narrating import Narration
from workers.cloud.vllm_engine.prompts import TextLengths


class Transcript:
    """Grows with each output of the engine."""

    def __init__(
        self,
        draft_tokens: Sequence[int] | None,
        lengths: TextLengths | None,
        listener: Listener | None,
        *,
        rejoin: bool = True,
    ) -> None:
        self.token_ids: list[int] = []
        self.text = ""
        self.logprobs: list[TokenLogprob] = []
        #: Prompt tokens that the prefix cache spared.
        self.cached_tokens = 0
        #: Outputs with tokens; one for each forward pass that wrote some.
        self.steps = 0
        #: vLLM's own word.
        self.finish_reason: str | None = None
        #: The stop string, or the token that counts as one; None where the model's own end of text ended the answer.
        self.stop_reason: int | str | None = None
        self._alignment = Alignment(draft_tokens or (), rejoin=rejoin)
        self._lengths = lengths
        self._listener = listener
        self._narration = Narration(has_draft=draft_tokens is not None)

    @property
    def accepted(self) -> int:
        """Draft tokens that stand in the answer."""
        return self._alignment.accepted

    def take(self, output: RequestOutput, top_logprobs: int) -> None:
        """The engine wrote on."""
        new = output.outputs[0]
        self.steps += bool(new.token_ids)
        self.cached_tokens = output.num_cached_tokens or 0
        self.finish_reason, self.stop_reason = new.finish_reason, new.stop_reason
        if new.logprobs:
            entries = zip(new.token_ids, new.logprobs, strict=True)
            self.logprobs.extend(_logprob(token, entry, top_logprobs) for token, entry in entries)
        self.write(new.token_ids, new.text)

    def write(self, token_ids: Sequence[int], text: str) -> None:
        """The answer goes on with these tokens, and this text is safe to tell."""
        self.token_ids.extend(token_ids)
        self.text += text
        for token in token_ids:
            accepted = self._alignment.advance(token)
            if self._lengths:
                self._narration.wrote_token(self._lengths.added_by(token), accepted=accepted)
        if self._listener:
            for piece in self._narration.tell(text):
                self._listener(piece)


def _logprob(token: int, entry: Any, top: int) -> TokenLogprob:
    """An entry of vLLM (token id to log-probability, the chosen token always among them) as ours."""
    ranked = sorted(entry.values(), key=lambda item: -item.logprob)[:top]
    return TokenLogprob(
        token=entry[token].decoded_token or "",
        token_id=token,
        logprob=entry[token].logprob,
        top=tuple((item.decoded_token or "", item.logprob) for item in ranked),
    )
