"""What tests ask cloud engines for."""

from schemas.drafts import Draft, TokenFigures
from schemas.requests import AcceptanceRule, Message, Sampling
from schemas.results import FinishReason
from workers.cloud.answer_order import AnswerOrder

_numbers = iter(range(1_000_000))


def order(
    question: str, *, draft=None, use_cache=True, acceptance=None, namespace="owner:alice", **sampling
) -> AnswerOrder:
    return AnswerOrder(
        request_id=f"request-{next(_numbers)}",
        messages=(Message(role="user", content=question),),
        sampling=Sampling(**({"max_tokens": 40} | sampling)),
        draft=draft,
        acceptance=acceptance or AcceptanceRule(),
        use_cache=use_cache,
        cache_namespace=namespace,
    )


def a_draft(token_ids, vocabulary: str, text: str = "", probability: float = 0.9) -> Draft:
    column = (probability,) * len(token_ids)
    return Draft(
        text=text,
        token_ids=tuple(token_ids),
        figures=TokenFigures(**dict.fromkeys(TokenFigures.model_fields, column)),
        finish_reason=FinishReason.STOP,
        prompt_tokens=10,
        model="edge",
        vocabulary=vocabulary,
    )
