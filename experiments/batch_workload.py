"""The workload of the batch benchmark: short questions of many kinds, as lines of OpenAI's Batch API."""

import json
from pathlib import Path

#: The model's name in every line, on both sides.
MODEL = "firstdraft"
#: Where the lines' requests go.
ENDPOINT = "/v1/chat/completions"
#: Tasks of reasoning-gym whose questions are short: arithmetic, words, order, time, logic.
TASKS = (
    "aiw",
    "basic_arithmetic",
    "calendar_arithmetic",
    "chain_sum",
    "coin_flip",
    "count_bits",
    "decimal_arithmetic",
    "family_relationships",
    "fraction_simplification",
    "gcd",
    "lcm",
    "leg_counting",
    "letter_counting",
    "number_sequence",
    "number_sorting",
    "products",
    "simple_equations",
    "spell_backward",
    "time_intervals",
    "word_sorting",
)
SEED = 7


def questions(number: int) -> list[str]:
    """Short questions, equally many of each task and the same at each call. Needs `reasoning-gym`."""
    import reasoning_gym  # noqa: PLC0415 - installed for benchmarks alone

    num_each = -(-number // len(TASKS))
    sets = [reasoning_gym.create_dataset(task, size=num_each, seed=SEED) for task in TASKS]
    return [str(tasks[index]["question"]) for index in range(num_each) for tasks in sets][:number]


def write_chats(target: Path, prompts: list[str], max_tokens: int) -> None:
    """A line for each prompt, answered greedily. Both sides read the same file."""
    with target.open("w", encoding="utf-8") as lines:
        for number, prompt in enumerate(prompts):
            body = {
                "model": MODEL,
                "messages": [{"role": "user", "content": prompt}],
                "max_tokens": max_tokens,
                "temperature": 0,
            }
            line = {"custom_id": str(number), "method": "POST", "url": ENDPOINT, "body": body}
            lines.write(json.dumps(line) + "\n")


def write_small_jobs(target: Path, number: int) -> None:
    """Write jobs that a fake engine answers with one token."""
    with target.open("w", encoding="utf-8") as lines:
        for position in range(number):
            job = {"prompt": f"line {position}", "max_tokens": 1, "policy": "edge_only"}
            lines.write(json.dumps(job) + "\n")
