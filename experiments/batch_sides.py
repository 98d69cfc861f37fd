"""The sides of the batch benchmark: `firstdraft batch` through the whole system, and vLLM's own `run_batch`.

Each side has the machine to itself while its turn lasts. Neither's engines' start counts: ours is timed from the start
of the command to its end once both tiers are ready; theirs from its log's line before it reads its input to the one
before it writes its output, which leaves out the start and end of its process too.
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
from experiments.chaos.system import System, running
from experiments.memory import peak_mb, peak_of_tree_mb
from experiments.waiting import killed_after
from firstdraft.cli.demo import THRESHOLD
from firstdraft.local.running import shared_machine
from workers.runtime.model_paths import cloud_model_path

#: Seconds between looks at the client's memory.
LOOK_S = 0.05
#: Seconds that one run may take.
RUN_S = 1200.0
#: What `run_batch` logs as it begins to read, and as it begins to write.
BEGINS, ENDS = "Reading batch from", "Writing outputs to"
#: GiB of vLLM's KV cache on either side: room for all that `run_batch` takes at once.
CACHE_GIB = 4
#: Workers around stand-in engines, and what each has in flight.
NUM_STAND_INS, STAND_IN_CAPACITY = 2, 64


@dataclass(frozen=True)
class Run:
    """What one side made of the lines."""

    seconds: float
    #: Lines answered, and those of them that the edge answered.
    answered: int
    at_edge: int
    #: Tokens of all answers.
    tokens: int


@dataclass(frozen=True)
class Peaks:
    """The most memory that either process had, in megabytes, and how long it took."""

    client_mb: float
    gateway_mb: float
    seconds: float


def firstdraft_batch(lines: Path, settings: Settings) -> Run:
    """One run of ours: gateway, a cloud worker that steps back, and an edge worker with one thread for each core.

    Several edge workers with a thread each get more done than one with several, whose threads wait for each other.
    """
    threshold = {"FIRSTDRAFT_EDGE__CONFIDENCE__THRESHOLD": str(THRESHOLD)}
    with (
        tempfile.TemporaryDirectory(prefix="firstdraft-batch-") as folder,
        running(Path(folder), **threshold) as system,
    ):
        for core in range(os.cpu_count() or 1):
            system.add(f"edge-{core}", _worker("edge"), None, FIRSTDRAFT_EDGE__MODEL__THREADS="1")
        environment = {"FIRSTDRAFT_CLOUD__MODEL__PATH": settings.cloud.model.path} | shared_machine(settings)
        environment["FIRSTDRAFT_CLOUD__KV_CACHE__CPU_GIB"] = str(CACHE_GIB)
        system.add("cloud", _worker("cloud"), None, **environment)
        system.wait_until_ready()
        output = Path(folder) / "answers.jsonl"
        seconds, _ = _run_client(system, lines, output)
        return _read(output, seconds)


def run_batch(lines: Path, settings: Settings) -> Run:
    """One run of vLLM's, on the cloud's model and all cores. Raises `RuntimeError` where it breaks."""
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
        said = []
        with (
            subprocess.Popen(  # noqa: S603 - our own command
                command,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                start_new_session=True,  # its engine's processes hold its output open as long as one of them lives
            ) as process,
            killed_after(process, RUN_S, "run_batch has answered all lines"),
        ):
            for line in process.stdout or ():
                said.append(line)
                for words in (BEGINS, ENDS):
                    if words in line:
                        times[words] = time.perf_counter()
        if process.returncode or len(times) != len((BEGINS, ENDS)):
            raise RuntimeError(f"run_batch ended with {process.returncode}: {''.join(said[-20:])}")
        return _read(output, times[ENDS] - times[BEGINS])


def peaks(lines: Path) -> Peaks:
    """One run of ours around stand-in engines."""
    with (
        tempfile.TemporaryDirectory(prefix="firstdraft-batch-") as folder,
        running(Path(folder), FIRSTDRAFT_REQUESTS__POLICY="edge_only") as system,
    ):
        for number in range(NUM_STAND_INS):
            command = [sys.executable, "-m", "tests.fakes.worker", "edge", "0"]
            capacity = {"FIRSTDRAFT_EDGE__MAX_IN_FLIGHT": str(STAND_IN_CAPACITY)}
            system.add(f"edge-{number}", command, None, **capacity)
        system.wait_until_ready()
        seconds, client_mb = _run_client(system, lines, Path(folder) / "answers.jsonl")
        gateway = system.members["gateway"].process
        return Peaks(client_mb, peak_of_tree_mb(gateway.pid) if gateway else 0.0, seconds)


def _run_client(system: System, lines: Path, output: Path) -> tuple[float, float]:
    """Seconds that the command took, and the most megabytes that it had. Raises `RuntimeError` where a line failed."""
    command = [sys.executable, "-m", "firstdraft.cli", "batch", str(lines), "-o", str(output), "--url", system.url]
    began = time.perf_counter()
    most_mb = 0.0
    with subprocess.Popen([*command, "--json"], env=child_environment(), stdout=subprocess.DEVNULL) as client:  # noqa: S603 - our own command
        while client.poll() is None:
            most_mb = max(most_mb, peak_mb(client.pid))
            if time.perf_counter() - began > RUN_S:
                client.kill()
            time.sleep(LOOK_S)
    if client.returncode:
        raise RuntimeError(f"`firstdraft batch` ended with {client.returncode}")
    if died := [member.name for member in system.members.values() if member.deaths]:
        raise RuntimeError(f"{', '.join(died)} died and came back meanwhile, and what was measured counts that")
    return time.perf_counter() - began, most_mb


def _worker(tier: str) -> list[str]:
    return [sys.executable, "-m", f"workers.{tier}"]


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
