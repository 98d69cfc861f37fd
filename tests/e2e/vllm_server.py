"""A server of vLLM's own, as somebody else would run it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.polling import until
from tests.processes import free_port, running

#: The name under which the server offers its model.
MODEL = "large"
#: Seconds until the server has loaded its model.
READY_S = 240.0


@contextmanager
def vllm_server(model_path: str, log: Path) -> Iterator[str]:
    """The server's base URL, once it answers."""
    port = str(free_port())
    url = f"http://127.0.0.1:{port}/v1"
    arguments = ("--model", model_path, "--served-model-name", MODEL, "--host", "127.0.0.1", "--port", port)
    engine = ("--dtype", "float32", "--enforce-eager", "--max-model-len", "1024", "--block-size", "32")
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    module = "vllm.entrypoints.openai.api_server"
    with running(module, *arguments, *engine, "--enable-prompt-tokens-details", log=log, **environment) as server:
        until(lambda: _answers(url) or server.said("never said, but notices an end"), "a server", within_s=READY_S)
        yield url


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/models", trust_env=False).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False
