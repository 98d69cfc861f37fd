"""Plain `LLM.generate` as a child process: what `bench_cloud` compares the cloud tier with.

Reads one JSON object a line (`conversations`, `max_tokens`) and prints one (`tokens`, `seconds`) for each. Use:
`python -m experiments.plain_vllm MODEL`.
"""

import json
import sys
import time
from typing import Any

from config.settings import read_settings
from workers.cloud.vllm_engine.environment import prepare_environment


def main() -> None:
    """Serve until the input ends."""
    settings, model_path = read_settings().cloud, sys.argv[1]
    prepare_environment(model_path, eager=settings.model.eager)
    from vllm import LLM, SamplingParams  # noqa: PLC0415 - after its environment is set

    from workers.cloud.vllm_engine.starting import common_arguments  # noqa: PLC0415

    llm = LLM(**common_arguments(settings, model_path))
    tokenizer = llm.get_tokenizer()
    _say({"ready": True})
    for line in sys.stdin:
        order = json.loads(line)
        prompts = [
            tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
            for turns in order["conversations"]
        ]
        began = time.perf_counter()
        params = SamplingParams(temperature=0.0, max_tokens=order["max_tokens"])
        outputs = llm.generate(prompts, params, use_tqdm=False)
        seconds = time.perf_counter() - began
        _say({"tokens": sum(len(output.outputs[0].token_ids) for output in outputs), "seconds": seconds})


def _say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
