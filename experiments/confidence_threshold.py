"""What a confidence threshold does to the quality of answers, measured on a running system.

    python -m experiments.confidence_threshold [--url URL]

Asks 200 short questions of the edge alone and of the cloud alone, and prints for each threshold how many drafts would
be kept and how many answers would be right if all others were the cloud's. Where confidence knows right from wrong
the curve bends: the default of `edge.confidence.threshold` was chosen from such a table (docs/log.md, "Confidence
threshold"). The questions are easy and short; what else is asked must be measured again.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from experiments.harness.report import parser, print_document, print_table
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
class Answered:
    """One question and how both tiers answered it."""

    question: Question
    confidence: float
    edge_right: bool
    cloud_right: bool


def kept_and_right(answered: Sequence[Answered], threshold: float) -> tuple[float, float]:
    """The share of drafts that are kept at the threshold, and the share of answers that are then right."""
    num_kept = sum(each.confidence >= threshold for each in answered)
    num_right = sum(each.edge_right if each.confidence >= threshold else each.cloud_right for each in answered)
    return num_kept / len(answered), num_right / len(answered)


def auroc(answered: Sequence[Answered]) -> float | None:
    """The probability that a right draft has a higher confidence than a wrong one, ties counting half.

    None if all drafts are right, or all wrong.
    """
    right = [each.confidence for each in answered if each.edge_right]
    wrong = [each.confidence for each in answered if not each.edge_right]
    if not right or not wrong:
        return None
    wins = sum((r > w) + (r == w) / 2 for r in right for w in wrong)
    return wins / (len(right) * len(wrong))


def ask(client: Client) -> list[Answered]:
    """Ask both tiers all questions. Blocks for minutes."""
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
            Answered(question, edge.confidence, question.is_answered_by(edge.text), question.is_answered_by(cloud.text))
        )
    return found


def main() -> None:
    """Measure, print a table and one JSON document."""
    arguments = parser(__doc__)
    arguments.add_argument("--url", default="http://127.0.0.1:8400")
    with Client(arguments.parse_args().url) as client:
        answered = ask(client)
        models = sorted({f"{worker.tier}: {worker.model}" for worker in client.system().workers})
    rows = []
    figures: dict[str, float | None] = {"auroc": auroc(answered)}
    for threshold in THRESHOLDS:
        kept, right = kept_and_right(answered, threshold)
        rows.append((f"{threshold:.2f}", f"{kept:.0%}", f"{right:.1%}"))
        figures |= {f"kept_{threshold:g}": kept, f"right_{threshold:g}": right}
    print_table(("threshold", "kept", "right"), rows)
    for kind, number in Counter(each.question.kind for each in answered).items():
        edge = sum(each.edge_right for each in answered if each.question.kind == kind)
        cloud = sum(each.cloud_right for each in answered if each.question.kind == kind)
        terminal().print(f"{kind}: edge {edge}, cloud {cloud} of {number} right")
    print_document("confidence_threshold", figures, models=models, questions=len(answered))


if __name__ == "__main__":
    main()
