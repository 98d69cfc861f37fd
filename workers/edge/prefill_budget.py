"""How many prompt tokens may ride along with a step, so that those who are writing do not notice much.

Pure: learns from the time that steps took. Knows nothing of requests.
"""

from workers.runtime.step_cost import StepCost

#: A step with prompt tokens in it may take this many times as long as one without.
STALL_FACTOR = 2.5
#: The same while others wait for a place in the batch: all end sooner the more a step gets done.
CROWDED_STALL_FACTOR = 5.0
#: On a CPU, llama.cpp's attention takes so many tokens of a step together, against every cell in use, and fewer each
#: against its own. A step that writes for many and reads as well costs twice as much from here on; of a long prompt
#: that is read alone, a token costs half as much.
TILE_TOKENS = 64
#: What a step may take that nobody waits on to write, if a tile does not take longer: whoever arrives or cancels
#: meanwhile waits for its end.
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


class PrefillBudget:
    """What a step without prompts costs, as a line in those that write, and running averages for a prompt's token.

    Small pieces make each of their tokens dear, so what is learned of them must not lead to smaller ones still. Hence
    the line reaches to any number of writers (while prompts always wait, no step is without them, and a guess that is
    too low would blame the prompts), and what a token costs beside writers says nothing of those that are read alone.

    `in_tiles`: whether `TILE_TOKENS` counts, which it does on a CPU.
    """

    def __init__(self, *, in_tiles: bool) -> None:
        self._in_tiles = in_tiles
        #: Prompt tokens that a step reads alone at least; fewer would say nothing of what one costs there.
        self._least_alone = TILE_TOKENS if in_tiles else MIN_PROMPT_TOKENS
        #: Of a prompt's token in a step that only reads, and in one that writes as well; None: none was measured yet.
        self._alone_s = ASSUMED_PROMPT_TOKEN_S
        self._beside_s: float | None = None
        self._writing = StepCost(PRIOR_COST_RATIO)

    def prompt_tokens(self, num_writing: int, step_tokens: int, *, crowded: bool) -> int:
        """How many prompt tokens the next step may read beside so many that write.

        `crowded`: others wait for a place in the batch.
        """
        if num_writing == 0:
            count = int(MOST_READING_S / self._alone_s)
            if self._in_tiles:
                count = TILE_TOKENS * round(count / TILE_TOKENS)
            return min(step_tokens, max(self._least_alone, count))
        factor = CROWDED_STALL_FACTOR if crowded else STALL_FACTOR
        spare_s = (factor - 1.0) * self._expected_s(num_writing)
        most = step_tokens if not self._in_tiles else min(step_tokens, TILE_TOKENS - 1)
        return max(MIN_PROMPT_TOKENS, min(most - num_writing, int(spare_s / (self._beside_s or self._alone_s))))

    def learn(self, num_writing: int, num_prompt_tokens: int, took_s: float) -> None:
        """Note what a step cost."""
        if num_prompt_tokens == 0:
            self._writing.observe(num_writing, took_s)
        elif num_writing == 0 and num_prompt_tokens >= self._least_alone:
            self._alone_s = _average(self._alone_s, took_s / num_prompt_tokens)
        elif num_writing and num_prompt_tokens >= MIN_PROMPT_TOKENS:
            over_s = max(took_s - self._expected_s(num_writing), 0.0)
            self._beside_s = _average(self._beside_s or self._alone_s, over_s / num_prompt_tokens)

    def _expected_s(self, num_writing: int) -> float:
        """Of a step without prompts, for at least one that writes."""
        if not self._writing.measured:
            return num_writing * ASSUMED_WRITTEN_TOKEN_S
        return self._writing.base_s + self._writing.token_s * num_writing


def _average(so_far_s: float, newest_s: float) -> float:
    """The running average, which no step ever makes nothing."""
    return max(so_far_s + LEARNING_RATE * (newest_s - so_far_s), ASSUMED_PROMPT_TOKEN_S / 1000)
