"""One answer as it comes out of vLLM: its tokens, its text, where it stands in its draft, and who is told."""

from collections.abc import Sequence
from typing import Any

from vllm.outputs import RequestOutput

from schemas.results import RivalLogprob, TokenLogprob
from workers.cloud.alignment import Alignment
from workers.cloud.cloud_engine import Listener
from workers.cloud.text_events import TextEvents
from workers.cloud.vllm_engine.prompts import Prompts, TextLengths
from workers.runtime.logprob_joining import DoesNotJoin, joined


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
        #: Where they are wanted, of every token that was written.
        self._logprobs: list[TokenLogprob] = []
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
        self._narration = TextEvents(has_draft=draft_tokens is not None)

    @property
    def accepted(self) -> int:
        """Draft tokens that stand in the answer."""
        return self._alignment.accepted

    def take(self, output: RequestOutput, prompts: Prompts, top_logprobs: int) -> None:
        """The engine wrote on."""
        new = output.outputs[0]
        self.steps += bool(new.token_ids)
        self.cached_tokens = output.num_cached_tokens or 0
        self.finish_reason, self.stop_reason = new.finish_reason, new.stop_reason
        if new.logprobs:
            self.note_logprobs(new.token_ids, new.logprobs, prompts, top_logprobs)
        self.write(new.token_ids, new.text)

    def note_logprobs(
        self, token_ids: Sequence[int], entries: Sequence[Any], prompts: Prompts, top_logprobs: int
    ) -> None:
        """What vLLM gave these next tokens: token id to log-probability, the token itself always among them."""
        for token, entry in zip(token_ids, entries, strict=True):
            own = _told(token, entry[token].logprob, prompts)
            ranked = sorted(entry, key=lambda rival: -entry[rival].logprob)[:top_logprobs]
            top = tuple(_told(rival, entry[rival].logprob, prompts) for rival in ranked)
            self._logprobs.append(
                TokenLogprob(token=own.token, bytes=own.bytes, token_id=token, logprob=own.logprob, top=top)
            )

    def joined_logprobs(self, lengths: TextLengths) -> tuple[TokenLogprob, ...]:
        """Those of the tokens with a part in the text. `lengths` are a fresh account of this answer."""
        try:
            return joined(self._logprobs, self.text)
        except DoesNotJoin:
            # vLLM drops bytes that are no UTF-8, and tokenizers may clean a text up: what counts is what each token
            # added to the text by the rule of both.
            return joined([_as_added(entry, lengths.text_of(entry.token_id)) for entry in self._logprobs], self.text)

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


def _as_added(entry: TokenLogprob, text: str) -> TokenLogprob:
    return entry.model_copy(update={"token": text, "bytes": tuple(text.encode())})


def _told(token: int, logprob: float, prompts: Prompts) -> RivalLogprob:
    return RivalLogprob(
        token=prompts.label(token), bytes=tuple(prompts.bytes_of(token)), token_id=token, logprob=logprob
    )
