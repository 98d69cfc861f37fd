"""How well a threshold from a few hundred labels keeps its promise, on recorded answers of real models.

    python -m experiments.recorded_answers ANSWERS.csv

The file has the columns `set`, `item`, `model`, `mean_logprob` and `correct`: one row for each answer. For each pair of
models of a set with enough items, labels are drawn 400 times, a threshold is chosen on them by the code that
`firstdraft calibrate` uses, and its true risk is taken over all items, so that those that were not drawn add no noise
of their own. Beside it stand the threshold that only looks safe on the labels ("naive"), conformal risk control, which
keeps the mean and no more (Angelopoulos et al., ICLR 2024), and the threshold for 75 % of the gap in quality.
"""

import csv
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.harness.report import parser, print_document, print_table
from quality.discrimination import Discrimination, can_tell, discrimination
from quality.samples import Array
from quality.thresholds import lowest_threshold, risk_frontier, threshold_for_gap

#: What is promised, and how often the draw of labels is repeated.
MAX_RISK, CERTAINTY, RESAMPLES = 0.05, 0.9, 400
LABELS = (100, 300, 500)
#: Share of the gap in quality, and by how much the quality may miss it.
GAP_SHARE, TOLERANCE = 0.75, 0.01
#: Items that a pair needs for a true risk; half of them at most are drawn.
FEWEST_ITEMS = 200
#: Pairs that are compared unless others are named: a set, the small model and the large one.
PAIRS = (
    ("mmlu", "llama3.1-8b", "llama3.1-405b"),
    ("mmlu", "llama3.2-3b", "llama3.1-405b"),
    ("mmlu", "llama3.2-1b", "llama3.1-405b"),
    ("mmlu", "gpt-4o-mini", "gpt-4o"),
    ("triviaqa", "llama3.1-8b", "llama3.1-405b"),
    ("triviaqa", "llama3.2-1b", "llama3.1-405b"),
    ("gsm8k", "llama3.2-1b", "llama3.1-405b"),
)

Answers = Mapping[tuple[str, str], Mapping[str, tuple[float, bool]]]


@dataclass(frozen=True)
class Pair:
    """The answers of two models to the same items: shape (items,)."""

    name: str
    #: exp(mean log-probability) of the small model's answer.
    scores: Array
    right_small: "np.typing.NDArray[np.bool_]"
    right_large: "np.typing.NDArray[np.bool_]"

    @property
    def worse(self) -> "np.typing.NDArray[np.bool_]":
        """Where the small model is wrong and the large one right."""
        return self.right_large & ~self.right_small


@dataclass(frozen=True)
class Outcome:
    """What one rule did over all draws: means over the draws."""

    kept: float
    #: Share of draws whose true risk is above the promise, or whose quality misses the wanted one.
    missed: float


def read_answers(path: Path) -> Answers:
    """The file's rows by set and model. Rows without a log-probability are left out."""
    found: defaultdict[tuple[str, str], dict[str, tuple[float, bool]]] = defaultdict(dict)
    with path.open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            try:
                score = math.exp(min(0.0, float(row["mean_logprob"])))
                found[row["set"], row["model"]][row["item"]] = (score, float(row["correct"]) > 0.5)
            except (TypeError, ValueError):
                continue
    return found


def pair_of(answers: Answers, name: str, small: str, large: str) -> Pair | None:
    """The items that both models answered; None if they are too few."""
    one, other = answers.get((name, small), {}), answers.get((name, large), {})
    items = sorted(item for item in one.keys() & other.keys() if math.isfinite(one[item][0]))
    if len(items) < FEWEST_ITEMS:
        return None
    return Pair(
        f"{name} {small} -> {large}",
        np.array([one[item][0] for item in items]),
        np.array([one[item][1] for item in items]),
        np.array([other[item][1] for item in items]),
    )


def by_count(scores: Array, worse: Array, *, extra: int) -> float | None:
    """The laxest threshold at which (worse + `extra`) / (labels + `extra`) stays within the risk."""
    order = np.argsort(-scores, kind="stable")
    within = (np.cumsum(worse[order]) + extra) / (len(scores) + extra) <= MAX_RISK
    count = len(within) if within.all() else int(np.argmin(within))
    return float(scores[order][count - 1]) if count else None


def outcomes(pair: Pair, labels: int, *, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Outcome]:
    """Each rule's outcome at this number of labels."""
    rng = np.random.default_rng(seed)
    found: defaultdict[str, list[tuple[float, bool]]] = defaultdict(list)
    gap = float(pair.right_large.mean() - pair.right_small.mean())
    wanted = float(pair.right_small.mean()) + GAP_SHARE * gap
    worse = pair.worse
    for _ in range(resamples):
        drawn = rng.permutation(len(pair.scores))[:labels]
        scores, bad = pair.scores[drawn], worse[drawn].astype(np.float64)
        thresholds = {
            "promise": lowest_threshold(risk_frontier(scores, bad, CERTAINTY), MAX_RISK),
            "naive": by_count(scores, bad, extra=0),
            "mean only": by_count(scores, bad, extra=1),
        }
        for rule, threshold in thresholds.items():
            kept = pair.scores >= (math.inf if threshold is None else threshold)
            found[rule].append((float(kept.mean()), bool((kept & worse).mean() > MAX_RISK)))
        threshold = threshold_for_gap(scores, pair.right_small[drawn], pair.right_large[drawn], GAP_SHARE)
        kept = pair.scores >= (math.inf if threshold is None else threshold)
        quality = float(np.where(kept, pair.right_small, pair.right_large).mean())
        found["75 % of the gap"].append((float(kept.mean()), quality < wanted - TOLERANCE))
    return {
        rule: Outcome(float(np.mean([kept for kept, _ in each])), float(np.mean([missed for _, missed in each])))
        for rule, each in found.items()
    }


def hindsight(pair: Pair) -> float:
    """The share that is kept at 75 % of the gap by the best threshold, known afterwards."""
    threshold = threshold_for_gap(pair.scores, pair.right_small, pair.right_large, GAP_SHARE)
    return 0.0 if threshold is None else float((pair.scores >= threshold).mean())


def described(found: Discrimination | None) -> str:
    """AUROC with its interval, and whether anything would be kept."""
    if found is None:
        return "one-sided"
    verdict = "" if can_tell(found) else ": keeps nothing"
    return f"{found.auroc:.2f} [{found.low:.2f}, {found.high:.2f}]{verdict}"


def pairs_in(answers: Answers) -> list[Pair]:
    """The named pairs that are in the file; where none is, each set's models by quality, neighbours paired."""
    named = [pair for names in PAIRS if (pair := pair_of(answers, *names)) is not None]
    if named:
        return named
    found = []
    for name in sorted({each for each, _ in answers}):
        models = [model for each, model in answers if each == name]
        models.sort(key=lambda model: np.mean([right for _, right in answers[name, model].values()]))
        if len(models) > 1:
            found += [pair_of(answers, name, small, models[-1]) for small in models[:-1]]
    return [pair for pair in found if pair is not None]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table and one JSON document."""
    options = parser(__doc__)
    options.add_argument("answers", type=Path)
    options.add_argument("--resamples", type=int, default=RESAMPLES)
    given = options.parse_args(arguments)
    rows, document = [], {}
    figures: dict[str, float] = {}
    pairs = pairs_in(read_answers(given.answers))
    if not pairs:
        raise SystemExit(f"{given.answers}: no two models of a set share {FEWEST_ITEMS} items")
    for pair in pairs:
        area = discrimination(pair.scores, ~pair.worse)
        for labels in (number for number in LABELS if number <= len(pair.scores) // 2):
            found = outcomes(pair, labels, resamples=given.resamples)
            document[f"{pair.name}, {labels} labels"] = {rule: vars(each) for rule, each in found.items()}
            cells = [f"{each.kept:.2f} ({each.missed:.0%})" for each in found.values()]
            rows.append((pair.name, str(labels), described(area), *cells, f"{hindsight(pair):.2f}"))
            if pair is pairs[0]:
                worst = figures.get("recorded_violation_rate", 0.0)
                figures |= {
                    "recorded_kept_share": found["75 % of the gap"].kept,
                    "recorded_gap_missed": found["75 % of the gap"].missed,
                    "recorded_promise_kept_share": found["promise"].kept,
                    "recorded_violation_rate": max(worst, found["promise"].missed),
                }
    columns = ("pair", "labels", "AUROC", "promise", "naive", "mean only", "75 % of the gap", "hindsight")
    print_table(columns, rows)
    print_document("recorded_answers", figures, outcomes=document)


if __name__ == "__main__":
    main()
