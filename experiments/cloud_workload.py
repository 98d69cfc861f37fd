"""The prompts of the cloud benchmark, and the kinds of draft that it has the cloud verify."""

import json
import random
from collections.abc import Callable, Sequence
from importlib.resources import files

from experiments.harness.edge import running_edge, submit, user_message
from experiments.waiting import outcome_of
from schemas.drafts import Draft, TokenFigures
from schemas.results import FinishReason
from workers.cloud.answer_order import CloudAnswer

#: Sixteen different prompts of experiments/prompts.jsonl: a batch of 16 requests has each of them once.
QUESTIONS = tuple(
    json.loads(line)["prompt"]
    for line in (files("experiments") / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    if '"prompt"' in line
)[:16]
#: In a nearly right draft, one word in this number is replaced.
WORD_IN = 20
#: The probability that hostile drafts claim for each token.
CLAIMED = 0.99
#: Token ids between the demo models' control tokens and the end of their vocabulary.
FIRST_TOKEN, LAST_TOKEN = 20, 49_000


def edge_drafts(max_tokens: int) -> list[Draft]:
    """The drafts that the configured edge engine writes for the questions."""
    with running_edge() as engine:
        futures = [submit(engine, user_message(question), max_tokens) for question in QUESTIONS]
        return [outcome_of(future, "a draft is written") for future in futures]


def drafted(token_ids: Sequence[int], vocabulary: str, model: str, claimed: float | None = None) -> Draft:
    """A draft with these tokens, and with the claimed probability for each if one is given.

    The cloud learns the acceptance of each model's drafts, so each kind of draft has a model name of its own.
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
    """The tokens of the answer with one word in `WORD_IN` replaced by another of its words."""
    words = answer.text.split(" ")
    for index in range(WORD_IN // 2, len(words), WORD_IN):
        words[index] = next((word for word in reversed(words) if word != words[index]), "else")
    end_of_text = answer.token_ids[-1:] if answer.finish_reason is FinishReason.STOP else ()
    return [*tokens_of(" ".join(words)), *end_of_text]


def hostile_tokens(answer: CloudAnswer, seed: int) -> list[int]:
    """Random tokens, as many as the answer has."""
    rng = random.Random(seed)
    return [rng.randrange(FIRST_TOKEN, LAST_TOKEN) for _ in answer.token_ids]
