"""The sides of the edge's benchmark, each run as a process of its own that prints one JSON document.

    python -m experiments.edge_sides SIDE GGUF_FILE IN_FLIGHT THREADS

Every side answers the same chat prompts greedily, with the same limit of tokens, after one warm-up request, and reports
output tokens per second and the peak memory of its process.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from experiments.harness.edge import start_edge, submit, user_message
from experiments.harness.memory import peak_mb
from experiments.waiting import outcome_of, until

#: Topics of the prompts: enough for 8 in flight, four times over.
TOPICS = ("copper", "rain", "bread", "a lighthouse", "the moon", "a compass", "tea", "glass") * 4
#: The longest answer, in tokens.
MAX_TOKENS = 64
#: Tokens of context for each request in flight.
CONTEXT_TOKENS = 512
#: Seconds that one answer, and the start of a server, may take.
ANSWER_S, START_S = 300.0, 120.0

Answer = Callable[[str], int]


def prompts(side: str, in_flight: int) -> list[str]:
    """Four different prompts per request in flight; one per request if only memory is of interest."""
    rounds = 1 if side == "llama_cpp_python_logprobs" else 4
    return [f"{number}. Tell me a story about {topic}." for number, topic in enumerate(TOPICS[: rounds * in_flight])]


def ours(model: Path, in_flight: int, threads: int) -> tuple[Answer, str]:
    """The edge engine, which computes all confidence figures of every token."""
    engine = start_edge(
        model,
        model={"threads": threads, "context_tokens": CONTEXT_TOKENS},
        max_in_flight=in_flight,
        max_in_flight_tokens=CONTEXT_TOKENS * in_flight,
    )

    def answer(prompt: str) -> int:
        draft = outcome_of(submit(engine, user_message(prompt), MAX_TOKENS), "a draft is written", ANSWER_S)
        return len(draft.token_ids)

    return answer, "llama-cpp-python's llama.cpp"


def create_completion(model: Path, in_flight: int, threads: int) -> tuple[Answer, str]:
    """`Llama.create_completion`, which serves one request at a time."""
    import llama_cpp  # noqa: PLC0415 - imported by this side only

    llama = llama_cpp.Llama(str(model), n_ctx=CONTEXT_TOKENS * in_flight, n_threads=threads, verbose=False)

    def answer(prompt: str) -> int:
        text = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
        done: Any = llama.create_completion(text, max_tokens=MAX_TOKENS, temperature=0.0)
        return int(done["usage"]["completion_tokens"])

    return answer, f"llama-cpp-python {llama_cpp.__version__}"


def llama_cpp_python(model: Path, in_flight: int, threads: int, *, logits_all: bool = False) -> tuple[Answer, str]:
    """llama-cpp-python's OpenAI server, in this process."""
    import llama_cpp  # noqa: PLC0415 - imported by this side only
    import uvicorn  # noqa: PLC0415
    from llama_cpp.server.app import create_app  # noqa: PLC0415
    from llama_cpp.server.settings import ModelSettings, ServerSettings  # noqa: PLC0415

    model_settings = ModelSettings(
        model=str(model),
        n_ctx=CONTEXT_TOKENS * in_flight,
        n_threads=threads,
        n_threads_batch=threads,
        logits_all=logits_all,
        verbose=False,
    )
    app = create_app(server_settings=ServerSettings(interrupt_requests=False), model_settings=[model_settings])
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    threading.Thread(target=server.run, daemon=True).start()
    until(lambda: server.started, "llama-cpp-python's server has started", START_S)
    port = server.servers[0].sockets[0].getsockname()[1]
    extra = {"logprobs": True, "top_logprobs": 5} if logits_all else {}
    return _over_http(f"http://127.0.0.1:{port}", extra), f"llama-cpp-python {llama_cpp.__version__}"


def llama_cpp_python_logprobs(model: Path, in_flight: int, threads: int) -> tuple[Answer, str]:
    """The same with logprobs, which a user who needs confidences must request."""
    return llama_cpp_python(model, in_flight, threads, logits_all=True)


def llama_server(model: Path, in_flight: int, threads: int) -> tuple[Answer, str]:
    """llama.cpp's own server with one slot per request in flight."""
    import xllamacpp  # noqa: PLC0415

    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.n_parallel = in_flight
    params.n_ctx = CONTEXT_TOKENS * in_flight
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.port = 0
    server = xllamacpp.Server(params)
    answer = _over_http(server.listening_address, {}, keep_alive=server)
    return answer, f"llama.cpp of xllamacpp: {xllamacpp.BUILD_INFO}"


def _over_http(base_url: str, extra: dict[str, Any], keep_alive: object = None) -> Answer:
    client = httpx.Client(base_url=base_url, timeout=ANSWER_S, trust_env=False)

    def answer(prompt: str) -> int:
        assert keep_alive is None or keep_alive
        messages = [{"role": "user", "content": prompt}]
        body = {"messages": messages, "max_tokens": MAX_TOKENS, "temperature": 0.0, **extra}
        done = client.post("/v1/chat/completions", json=body).raise_for_status().json()
        return int(done["usage"]["completion_tokens"])

    return answer


SIDES = {
    side.__name__: side for side in (ours, create_completion, llama_cpp_python, llama_cpp_python_logprobs, llama_server)
}


def main(side: str, model: Path, in_flight: int, threads: int) -> None:
    """Answer all prompts and print the figures as JSON."""
    answer, build = SIDES[side](model, in_flight, threads)
    with ThreadPoolExecutor(in_flight) as pool:
        # In the pool's thread: each thread that calls llama.cpp has its own team of OpenMP threads, and with more
        # of them than cores every step waits for threads that are not running, at a third of the speed.
        outcome_of(pool.submit(answer, "Say hello."), "the warm-up is answered", ANSWER_S)
        began = time.perf_counter()
        tokens = sum(pool.map(answer, prompts(side, in_flight)))
        seconds = time.perf_counter() - began
    figures = {"tokens": tokens, "tokens_per_s": tokens / seconds, "peak_mb": peak_mb(), "build": build}
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
    os._exit(0)  # the servers' threads would keep the process alive; its end is not measured
