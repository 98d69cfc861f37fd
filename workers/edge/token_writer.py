"""One more token for a sequence: chosen, measured, and turned into text. Knows one row of logits at a time."""

from config.settings import ConfidenceSettings
from schemas.drafts import Draft
from schemas.results import RivalLogprob, TokenLogprob
from workers.edge.confidence import assess
from workers.edge.edge_sequence import EdgeSequence
from workers.edge.llama import Llama, Logits
from workers.edge.token_metrics import Meter, largest


class Writer:
    """Writes with one model's vocabulary. Not for two threads at once."""

    def __init__(self, model: Llama, settings: ConfidenceSettings) -> None:
        self._model = model
        self._meter = Meter(model.vocab_size, temperature=settings.temperature, top_k=settings.top_k)

    def write(self, sequence: EdgeSequence, logits: Logits) -> None:
        """Append the next token to the sequence, given its row of raw logits."""
        token = sequence.choose(logits, int(logits.argmax()))
        row = self._meter.measure(logits, token)
        sampling = sequence.order.sampling
        if sampling.logprobs:
            sequence.logprobs.append(self._logprob(token, logits, row.log_total, sampling.top_logprobs))
        ends_text = self._model.ends_text(token)
        sequence.write(token, row, self._model.piece(token), ends_text=ends_text)

    def finish(self, sequence: EdgeSequence, vocabulary: str) -> Draft:
        """The finished sequence's draft with its confidence."""
        draft = sequence.draft(self._model.name, vocabulary)
        return draft.model_copy(update={"confidence": assess(draft.figures, sequence.order.rule)})

    def _logprob(self, token: int, logits: Logits, log_total: float, num_top: int) -> TokenLogprob:
        rivals = zip(*largest(logits, num_top), strict=True) if num_top else ()
        top = tuple(self._told(int(place), float(value) - log_total) for value, place in rivals)
        told = self._told(token, float(logits[token]) - log_total)
        return TokenLogprob(token=told.token, bytes=told.bytes, token_id=token, logprob=told.logprob, top=top)

    def _told(self, token: int, logprob: float) -> RivalLogprob:
        return RivalLogprob(
            token=self._model.label(token), bytes=tuple(self._model.piece(token)), token_id=token, logprob=logprob
        )
