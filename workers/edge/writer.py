"""One more token for a flight: chosen, measured, and turned into text. Knows one row of logits at a time."""

from config.settings import ConfidenceSettings
from schemas.drafts import Draft
from schemas.results import RivalLogprob, TokenLogprob
from workers.edge.confidence import assess
from workers.edge.figures import Meter, largest
from workers.edge.flight import Flight
from workers.edge.llama import Llama, Logits


class Writer:
    """Writes with one model's vocabulary. Not for two threads at once."""

    def __init__(self, model: Llama, settings: ConfidenceSettings) -> None:
        self._model = model
        self._meter = Meter(model.vocab_size, temperature=settings.temperature, top_k=settings.top_k)

    def write(self, flight: Flight, logits: Logits) -> None:
        """Append the next token to the flight, given its row of raw logits."""
        token = flight.choose(logits, int(logits.argmax()))
        row = self._meter.measure(logits, token)
        sampling = flight.order.sampling
        if sampling.logprobs:
            flight.logprobs.append(self._logprob(token, logits, row.log_total, sampling.top_logprobs))
        ends_text = self._model.ends_text(token)
        flight.write(token, row, self._model.piece(token), ends_text=ends_text)

    def finish(self, flight: Flight, vocabulary: str) -> Draft:
        """The finished flight's draft with its confidence."""
        draft = flight.draft(self._model.name, vocabulary)
        return draft.model_copy(update={"confidence": assess(draft.figures, flight.order.rule)})

    def _logprob(self, token: int, logits: Logits, log_total: float, num_top: int) -> TokenLogprob:
        rivals = zip(*largest(logits, num_top), strict=True) if num_top else ()
        top = tuple(self._told(int(place), float(value) - log_total) for value, place in rivals)
        told = self._told(token, float(logits[token]) - log_total)
        return TokenLogprob(token=told.token, bytes=told.bytes, token_id=token, logprob=told.logprob, top=top)

    def _told(self, token: int, logprob: float) -> RivalLogprob:
        return RivalLogprob(
            token=self._model.label(token), bytes=tuple(self._model.piece(token)), token_id=token, logprob=logprob
        )
