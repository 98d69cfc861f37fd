"""The two sides of the batch benchmark: `firstdraft batch` through the whole system, and vLLM's own `run_batch`.

One side runs at a time. The start of engines is not counted. Ours is timed from the start of the command to its end,
once both tiers are ready. Theirs is timed between two lines of its log, before it reads its input and before it writes
its output, which also leaves out the start and end of its process.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from config.environment import child_environment
from config.settings import Settings
from experiments.batch_workload import MODEL
from experiments.harness.memory import peak_mb, peak_of_tree_mb
from experiments.harness.system import System, running_system
from experiments.waiting import killed_after
from firstdraft.cli.demo import THRESHOLD
from firstdraft.local.running import shared_machine
from workers.runtime.model_paths import cloud_model_path

#: Seconds between samples of the client's memory.
SAMPLE_S = 0.05
#: Seconds that one run may take.
RUN_S = 1200.0
#: What `run_batch` logs as it begins to read, and as it begins to write.
BEGINS, ENDS = "Reading batch from", "Writing outputs to"
#: GiB of vLLM's KV cache on either side: room for all that `run_batch` takes at once.
CACHE_GIB = 4
#: Workers on fake engines, and requests that each has in flight.
NUM_FAKES, FAKE_CAPACITY = 2, 64


@dataclass(frozen=True)
class Run:
    """How one side answered the lines."""

    seconds: float
    #: Lines answered, and those of them that the edge answered.
    answered: int
    at_edge: int
    #: Tokens of all answers.
    tokens: int


@dataclass(frozen=True)
class Peaks:
    """The peak memory of either process in MiB, and the seconds that the run took."""

    client_mb: float
    gateway_mb: float
    seconds: float


def firstdraft_batch(lines: Path, settings: Settings) -> Run:
    """One run of ours: a gateway, a cloud worker of low priority, and an edge worker with one thread for each core.

    Several edge workers with a thread each have a higher throughput than one with several, whose threads wait for each
    other.
    """
    with running_system({"FIRSTDRAFT_EDGE__CONFIDENCE__THRESHOLD": str(THRESHOLD)}) as system:
        for core in range(os.cpu_count() or 1):
            system.add_worker(f"edge-{core}", "edge", {"FIRSTDRAFT_EDGE__MODEL__THREADS": "1"})
        environment = {"FIRSTDRAFT_CLOUD__MODEL__PATH": settings.cloud.model.path} | shared_machine(settings)
        environment["FIRSTDRAFT_CLOUD__KV_CACHE__CPU_GIB"] = str(CACHE_GIB)
        system.add_worker("cloud", "cloud", environment)
        system.wait_until_ready()
        output = system.folder / "answers.jsonl"
        seconds, _ = _run_client(system, lines, output)
        return _read(output, seconds)


def run_batch(lines: Path, settings: Settings) -> Run:
    """One run of vLLM's, on the cloud's model and all cores. Raises `RuntimeError` if it fails."""
    with tempfile.TemporaryDirectory(prefix="firstdraft-batch-") as folder:
        output = Path(folder) / "answers.jsonl"
        command = [sys.executable, "-m", "vllm.entrypoints.openai.run_batch", "-i", str(lines), "-o", str(output)]
        command += ["--model", cloud_model_path(settings), "--served-model-name", MODEL, "--dtype", "float32"]
        command += ["--max-model-len", str(settings.cloud.model.context_tokens)]
        command += ["--block-size", str(settings.cloud.kv_cache.block_size), "--enforce-eager"]
        environment = child_environment(
            VLLM_CPU_KVCACHE_SPACE=str(CACHE_GIB),
            VLLM_CPU_OMP_THREADS_BIND=",".join(str(core) for core in sorted(os.sched_getaffinity(0))),
            VLLM_LOGGING_LEVEL="INFO",
            TORCH_COMPILE_DISABLE="1",  # as on our side; nothing is compiled within what is timed
            VLLM_NO_USAGE_STATS="1",
            HF_HUB_OFFLINE="1",
            PYTHONUNBUFFERED="1",
        )
        times: dict[str, float] = {}
        log = []
        with (
            subprocess.Popen(  # noqa: S603 - our own command
                command,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                start_new_session=True,  # its engine processes keep its output open, so all are killed
            ) as process,
            killed_after(process, RUN_S, "run_batch has answered all lines"),
        ):
            for line in process.stdout or ():
                log.append(line)
                for marker in (BEGINS, ENDS):
                    if marker in line:
                        times[marker] = time.perf_counter()
        if process.returncode or len(times) != len((BEGINS, ENDS)):
            raise RuntimeError(f"run_batch ended with {process.returncode}: {''.join(log[-20:])}")
        return _read(output, times[ENDS] - times[BEGINS])


def peaks(lines: Path) -> Peaks:
    """One run of ours on fake engines."""
    with running_system({"FIRSTDRAFT_REQUESTS__POLICY": "edge_only"}) as system:
        capacity = {"FIRSTDRAFT_EDGE__MAX_IN_FLIGHT": str(FAKE_CAPACITY)}
        for number in range(NUM_FAKES):
            system.add_fake_worker(f"edge-{number}", "edge", token_s=0, environment=capacity)
        system.wait_until_ready()
        seconds, client_mb = _run_client(system, lines, system.folder / "answers.jsonl")
        gateway = system.processes["gateway"].process
        return Peaks(client_mb, peak_of_tree_mb(gateway.pid) if gateway else 0.0, seconds)


def _run_client(system: System, lines: Path, output: Path) -> tuple[float, float]:
    """Seconds that the command took, and its peak memory in MiB. Raises `RuntimeError` if a line failed."""
    command = [sys.executable, "-m", "firstdraft.cli", "batch", str(lines), "-o", str(output), "--url", system.url]
    began = time.perf_counter()
    client_mb = 0.0
    with subprocess.Popen([*command, "--json"], env=child_environment(), stdout=subprocess.DEVNULL) as client:  # noqa: S603 - our own command
        while client.poll() is None:
            client_mb = max(client_mb, peak_mb(client.pid))
            if time.perf_counter() - began > RUN_S:
                client.kill()
            time.sleep(SAMPLE_S)
    if client.returncode:
        raise RuntimeError(f"`firstdraft batch` ended with {client.returncode}")
    if died := [process.name for process in system.processes.values() if process.deaths]:
        raise RuntimeError(f"{', '.join(died)} died and restarted meanwhile, which the measurement includes")
    return time.perf_counter() - began, client_mb


def _read(output: Path, seconds: float) -> Run:
    answered = at_edge = tokens = 0
    with output.open(encoding="utf-8") as lines:
        for line in lines:
            response = json.loads(line)["response"]
            if response["status_code"] == 200:
                answered += 1
                tokens += response["body"]["usage"]["completion_tokens"]
                at_edge += response["body"].get("firstdraft", {}).get("tier") == "edge"
    return Run(seconds, answered, at_edge, tokens)
