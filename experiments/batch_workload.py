"""What the batch benchmark asks: short questions of many kinds, as lines of OpenAI's Batch API."""

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
    """So many different short questions, of each task as many. Needs `reasoning-gym`; the same at each call."""
    import reasoning_gym  # noqa: PLC0415 - installed for benchmarks alone

    each = -(-number // len(TASKS))
    sets = [reasoning_gym.create_dataset(task, size=each, seed=SEED) for task in TASKS]
    return [str(tasks[place]["question"]) for place in range(each) for tasks in sets][:number]


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
    """So many lines that cost an engine's stand-in nothing."""
    with target.open("w", encoding="utf-8") as lines:
        for place in range(number):
            job = {"prompt": f"line {place}", "max_tokens": 1, "policy": "edge_only"}
            lines.write(json.dumps(job) + "\n")
