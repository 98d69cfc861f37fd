"""Log-probabilities of a written token and its likeliest alternatives, from a row of raw logits."""

from schemas.results import RivalLogprob, TokenLogprob
from workers.edge.llama import Llama, Logits
from workers.edge.token_metrics import largest


def token_logprob(model: Llama, token: int, logits: Logits, log_total: float, num_top: int) -> TokenLogprob:
    """The entry of a written token. `log_total` is the natural logarithm of the sum of exp(logit) over the row."""
    top = zip(*largest(logits, num_top), strict=True) if num_top else ()
    rivals = tuple(_rival(model, int(other), float(logit) - log_total) for logit, other in top)
    return TokenLogprob(**vars(_rival(model, token, float(logits[token]) - log_total)), top=rivals)


def _rival(model: Llama, token: int, logprob: float) -> RivalLogprob:
    return RivalLogprob(token=model.label(token), bytes=tuple(model.piece(token)), token_id=token, logprob=logprob)
