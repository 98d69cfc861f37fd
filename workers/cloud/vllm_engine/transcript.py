"""An answer as vLLM writes it: its tokens, text and log-probabilities, and how much of its draft was accepted."""

from collections.abc import Sequence
from typing import Any

from vllm.outputs import RequestOutput

from schemas.results import RivalLogprob, TokenLogprob
from workers.cloud.alignment import Alignment
from workers.cloud.text_events import TextEvents
from workers.cloud.vllm_engine.prompts import Prompts, TokenTexts
from workers.runtime.engine import Listener
from workers.runtime.logprob_joining import DoesNotJoin, joined


class Transcript:
    """Grows with each output of the engine, and passes new text on to the listener."""

    def __init__(
        self,
        draft_tokens: Sequence[int] | None,
        texts: TokenTexts | None,
        listener: Listener | None,
        *,
        rejoin: bool = True,
    ) -> None:
        self.token_ids: list[int] = []
        self.text = ""
        #: Of every token written, if the request asked for them.
        self._logprobs: list[TokenLogprob] = []
        #: Prompt tokens that were read from the prefix cache.
        self.cached_tokens = 0
        #: Outputs with tokens; one for each forward pass that wrote some.
        self.steps = 0
        #: vLLM's own value.
        self.finish_reason: str | None = None
        #: The stop string, or the token that counts as one; None where the model's own end of text ended the answer.
        self.stop_reason: int | str | None = None
        self._alignment = Alignment(draft_tokens or (), rejoin=rejoin)
        self._texts = texts
        self._listener = listener
        self._events = TextEvents(has_draft=draft_tokens is not None)

    @property
    def accepted(self) -> int:
        """Draft tokens that are part of the answer."""
        return self._alignment.accepted

    def take(self, output: RequestOutput, prompts: Prompts, top_logprobs: int) -> None:
        """Take the engine's next output."""
        new = output.outputs[0]
        self.steps += bool(new.token_ids)
        self.cached_tokens = output.num_cached_tokens or 0
        self.finish_reason, self.stop_reason = new.finish_reason, new.stop_reason
        if new.logprobs:
            self.add_logprobs(new.token_ids, new.logprobs, prompts, top_logprobs)
        self.add(new.token_ids, new.text)

    def add_logprobs(
        self, token_ids: Sequence[int], entries: Sequence[Any], prompts: Prompts, top_logprobs: int
    ) -> None:
        """Take vLLM's log-probabilities by token id for these next tokens; each token's own is among its entry."""
        for token, entry in zip(token_ids, entries, strict=True):
            ranked = sorted(entry, key=lambda rival: -entry[rival].logprob)[:top_logprobs]
            top = tuple(RivalLogprob(**_fields(rival, entry, prompts)) for rival in ranked)
            self._logprobs.append(TokenLogprob(**_fields(token, entry, prompts), top=top))

    def joined_logprobs(self, texts: TokenTexts) -> tuple[TokenLogprob, ...]:
        """Those of tokens that are part of the text. `texts` is a new one for the same prompt."""
        try:
            return joined(self._logprobs, self.text)
        except DoesNotJoin:
            # vLLM drops bytes that are not UTF-8, and some tokenizers clean up text: then each token's bytes are what
            # it added to the decoded text.
            return joined([_as_added(entry, texts.text_of(entry.token_id)) for entry in self._logprobs], self.text)

    def add(self, token_ids: Sequence[int], text: str) -> None:
        """Append these tokens, and text that may be published."""
        self.token_ids.extend(token_ids)
        self.text += text
        for token in token_ids:
            accepted = self._alignment.advance(token)
            if self._texts:
                self._events.add_token(len(self._texts.text_of(token)), accepted=accepted)
        if self._listener:
            for event in self._events.of(text):
                self._listener(event)


def _as_added(entry: TokenLogprob, text: str) -> TokenLogprob:
    return entry.model_copy(update={"token": text, "bytes": tuple(text.encode())})


def _fields(token: int, entry: Any, prompts: Prompts) -> dict[str, Any]:
    raw = tuple(prompts.bytes_of(token))
    return {"token": prompts.label(token), "bytes": raw, "token_id": token, "logprob": entry[token].logprob}
