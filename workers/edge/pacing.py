"""How many prompt tokens may ride along with a step, so that those who are writing do not notice much.

Pure: learns from the time that steps took. Knows nothing of requests.
"""

from workers.step_cost import StepCost

#: A step with prompt tokens in it may take this many times as long as one without.
STALL_FACTOR = 2.5
#: The same while others wait for a place in the batch: all end sooner the more a step gets done.
CROWDED_STALL_FACTOR = 5.0
#: On a CPU, llama.cpp's attention takes so many tokens of a step together or more against every cell in use, and fewer
#: each against its own: a step that writes for many and reads as well costs twice as much from here on.
TILE_TOKENS = 64
#: What a step may take that nobody waits on to write: whoever arrives or cancels meanwhile waits for its end.
MOST_READING_S = 0.5
#: Weight of the newest step in the running average.
LEARNING_RATE = 0.2
#: Prompt tokens that ride along however slow the machine: a prompt must progress. On a CPU, one of a long prompt's last
#: tokens can cost as much as several writers, so that more would stall them; the prompt ends hardly later.
MIN_PROMPT_TOKENS = 4
#: Seconds that a prompt token and a written token cost before anything was measured.
ASSUMED_PROMPT_TOKEN_S, ASSUMED_WRITTEN_TOKEN_S = 0.001, 0.006
#: Seconds that one more written token costs, over seconds of an empty step, before anything was measured.
PRIOR_COST_RATIO = 0.35


class Pacing:
    """What a step without prompts costs, as a line in those that write, and a running average for a prompt's token.

    The line must reach to any number of writers: while prompts always wait, no step is without them, and a guess that
    is too low would blame the prompts, read them in ever smaller pieces, and make each of their tokens as dear as it
    was believed to be.

    `in_tiles`: whether `TILE_TOKENS` counts, which it does on a CPU.
    """

    def __init__(self, *, in_tiles: bool) -> None:
        self._in_tiles = in_tiles
        self._prompt_token_s = ASSUMED_PROMPT_TOKEN_S
        self._writing = StepCost(PRIOR_COST_RATIO)

    def prompt_tokens(self, num_writing: int, step_tokens: int, *, crowded: bool) -> int:
        """How many prompt tokens the next step may read beside so many that write.

        `crowded`: others wait for a place in the batch.
        """
        if num_writing == 0:
            return max(MIN_PROMPT_TOKENS, min(step_tokens, int(MOST_READING_S / self._prompt_token_s)))
        factor = CROWDED_STALL_FACTOR if crowded else STALL_FACTOR
        spare_s = (factor - 1.0) * self._expected_s(num_writing)
        most = step_tokens if not self._in_tiles else min(step_tokens, TILE_TOKENS - 1)
        return max(MIN_PROMPT_TOKENS, min(most - num_writing, int(spare_s / self._prompt_token_s)))

    def learn(self, num_writing: int, num_prompt_tokens: int, took_s: float) -> None:
        """Note what a step cost."""
        if num_prompt_tokens == 0:
            self._writing.observe(num_writing, took_s)
        elif num_prompt_tokens >= MIN_PROMPT_TOKENS:
            cost = max(took_s - self._expected_s(num_writing), 0.0) / num_prompt_tokens
            self._prompt_token_s += LEARNING_RATE * (cost - self._prompt_token_s)
            self._prompt_token_s = max(self._prompt_token_s, ASSUMED_PROMPT_TOKEN_S / 1000)

    def _expected_s(self, num_writing: int) -> float:
        """Of a step without prompts."""
        if num_writing == 0:
            return 0.0
        if not self._writing.measured:
            return num_writing * ASSUMED_WRITTEN_TOKEN_S
        return self._writing.base_s + self._writing.token_s * num_writing
