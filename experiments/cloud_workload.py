"""What the cloud benchmark asks, and the kinds of draft that it gives the cloud to verify."""

import json
import random
from collections.abc import Callable, Sequence
from importlib.resources import files

from config.settings import Settings
from experiments.waiting import outcome_of
from schemas.drafts import Draft, TokenFigures
from schemas.requests import ConfidenceRule, Message, Sampling
from schemas.results import FinishReason
from workers.cloud.answer_order import CloudAnswer
from workers.edge.edge_sequence import DraftOrder
from workers.edge.engine import EdgeEngine
from workers.runtime.model_paths import edge_model_path

#: The project's own ordinary prompts: the first sixteen single ones, so that one batch of 16 asks each once.
QUESTIONS = tuple(
    json.loads(line)["prompt"]
    for line in (files("experiments") / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    if '"prompt"' in line
)[:16]
#: In a nearly right draft, each word of this number is another one.
WORD_IN = 20
#: What hostile drafts claim of each token's probability, to be believed.
CLAIMED = 0.99
#: Token ids below this are control tokens in the demo's models, and those above do not all exist.
FIRST_TOKEN, LAST_TOKEN = 20, 49_000


def conversation(question: str) -> tuple[Message, ...]:
    """One user message."""
    return (Message(role="user", content=question),)


def edge_drafts(settings: Settings, max_tokens: int) -> list[Draft]:
    """What the edge really drafts for each question."""
    engine = EdgeEngine(settings.edge, edge_model_path(settings))
    engine.start()
    try:
        futures = [
            engine.submit(
                DraftOrder(
                    request_id=f"draft-{index}",
                    messages=conversation(question),
                    sampling=Sampling(max_tokens=max_tokens),
                    rule=ConfidenceRule(strategy="max_prob"),
                    use_cache=True,
                    cache_namespace="experiment",
                    may_escalate_early=False,
                )
            )
            for index, question in enumerate(QUESTIONS)
        ]
        return [outcome_of(future, "a draft is written") for future in futures]
    finally:
        engine.close()


def drafted(token_ids: Sequence[int], vocabulary: str, model: str, claimed: float | None = None) -> Draft:
    """A draft of these tokens by a model of this name, without figures or with the same claim for each token.

    What the cloud learns of one model's drafts does not touch another's, so each kind of draft has its own name.
    """
    column = () if claimed is None else (claimed,) * len(token_ids)
    return Draft(
        text="",
        token_ids=tuple(token_ids),
        figures=TokenFigures(
            probability=column,
            scaled_probability=column,
            margin=column,
            normalised_entropy=column,
            top_k_mass=column,
        ),
        finish_reason=FinishReason.STOP,
        prompt_tokens=1,
        model=model,
        vocabulary=vocabulary,
    )


def near_tokens(answer: CloudAnswer, tokens_of: Callable[[str], list[int]]) -> list[int]:
    """The answer with one word in `WORD_IN` replaced by another of its words, tokenized anew."""
    words = answer.text.split(" ")
    for index in range(WORD_IN // 2, len(words), WORD_IN):
        words[index] = next((word for word in reversed(words) if word != words[index]), "else")
    ended = answer.token_ids[-1:] if answer.finish_reason is FinishReason.STOP else ()
    return [*tokens_of(" ".join(words)), *ended]


def hostile_tokens(answer: CloudAnswer, seed: int) -> list[int]:
    """As many random tokens as the answer has."""
    rng = random.Random(seed)
    return [rng.randrange(FIRST_TOKEN, LAST_TOKEN) for _ in answer.token_ids]
