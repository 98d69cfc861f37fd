"""What a confidence threshold does to the quality of answers, measured on a running system.

    python -m experiments.confidence_threshold [--url URL]

Asks 200 short questions of the edge alone and of the cloud alone, and prints for each threshold how many drafts would
be kept and how many answers would be right if all others were the cloud's. Where confidence knows right from wrong
the curve bends: the default of `edge.confidence.threshold` was chosen from such a table (docs/log.md, "Confidence
threshold"). The questions are easy and short; what else is asked must be measured again.
"""

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from experiments.short_questions import Question, questions
from firstdraft.cli.terminal import terminal
from firstdraft.client.sync import Client

#: Thresholds of the table; the last one keeps nothing.
THRESHOLDS = (0.0, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.97, 0.99, 1.01)
#: The longest answer, in tokens: enough for four numbers.
MAX_TOKENS = 16
#: Requests in flight.
IN_FLIGHT = 16


@dataclass(frozen=True)
class Asked:
    """What became of one question at both tiers."""

    question: Question
    confidence: float
    edge_right: bool
    cloud_right: bool


def kept_and_right(asked: Sequence[Asked], threshold: float) -> tuple[float, float]:
    """The share of drafts that are kept at the threshold, and the share of answers that are right then."""
    kept = [one for one in asked if one.confidence >= threshold]
    right = sum(one.edge_right if one.confidence >= threshold else one.cloud_right for one in asked)
    return len(kept) / len(asked), right / len(asked)


def auroc(asked: Sequence[Asked]) -> float | None:
    """How often a right draft is surer than a wrong one, ties counting half; None where all are alike."""
    right = [one.confidence for one in asked if one.edge_right]
    wrong = [one.confidence for one in asked if not one.edge_right]
    if not right or not wrong:
        return None
    wins = sum((r > w) + (r == w) / 2 for r in right for w in wrong)
    return wins / (len(right) * len(wrong))


def ask(client: Client) -> list[Asked]:
    """All questions, of both tiers. Blocks for minutes."""
    asked = questions()
    prompts = [question.prompt for question in asked]
    answers = {
        policy: list(client.infer_many(prompts, concurrency=IN_FLIGHT, max_tokens=MAX_TOKENS, policy=policy))
        for policy in ("edge_only", "cloud_only")
    }
    found = []
    for question, edge, cloud in zip(asked, answers["edge_only"], answers["cloud_only"], strict=True):
        assert edge.confidence is not None
        found.append(
            Asked(question, edge.confidence, question.is_answered_by(edge.text), question.is_answered_by(cloud.text))
        )
    return found


def main() -> None:
    """Measure, print a table and one JSON document."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--url", default="http://127.0.0.1:8400")
    with Client(arguments.parse_args().url) as client:
        asked = ask(client)
        models = sorted({f"{worker.tier}: {worker.model}" for worker in client.system().workers})
    table = Table("threshold", "kept", "right")
    figures: dict[str, float | None] = {"auroc": auroc(asked)}
    for threshold in THRESHOLDS:
        kept, right = kept_and_right(asked, threshold)
        table.add_row(f"{threshold:.2f}", f"{kept:.0%}", f"{right:.1%}")
        figures |= {f"kept_{threshold:g}": kept, f"right_{threshold:g}": right}
    console = terminal()
    console.print(table)
    by_kind = Counter(one.question.kind for one in asked)
    for kind, number in by_kind.items():
        edge = sum(one.edge_right for one in asked if one.question.kind == kind)
        cloud = sum(one.cloud_right for one in asked if one.question.kind == kind)
        console.print(f"{kind}: edge {edge}, cloud {cloud} of {number} right")
    print(json.dumps({"bench": "confidence_threshold", "models": models, "questions": len(asked), "figures": figures}))


if __name__ == "__main__":
    main()
