"""Runs a programming problem's tests on a model's answer, untrusted code, in a process with limits."""

import json
import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

#: Seconds of processor and wall-clock time, and bytes of memory and of files, of one answer's tests.
CPU_S, WALL_S, MEMORY_BYTES, FILE_BYTES = 5, 15, 1 << 30, 1 << 20

_BLOCK = re.compile(r"```[a-zA-Z0-9_+-]*\n(.*?)(?:```|\Z)", re.DOTALL)


def code_of(answer: str) -> str:
    """The code in an answer: its first code block, or all of it where there is none."""
    block = _BLOCK.search(answer)
    return block[1] if block else answer


def passes(answer: str, problem: str) -> bool:
    """Whether the answer's function passes the problem's tests. `problem`: JSON with prompt, test and entry_point.

    Runs the code in a child process without network access where the kernel allows that, in an empty folder, with
    limits on time, memory, processes and files. That keeps accidents apart from this machine; it is no sandbox against
    an attack.
    """
    parts = json.loads(problem)
    imports = "\n".join(line for line in parts["prompt"].splitlines() if line.startswith(("import ", "from ")))
    program = f"{imports}\n{code_of(answer)}\n{parts['test']}\ncheck({parts['entry_point']})\n"
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "answer.py").write_text(program, encoding="utf-8", errors="replace")
        command = [*_without_network(), sys.executable, "-I", "answer.py"]
        try:
            done = subprocess.run(  # noqa: S603 - untrusted on purpose, with the limits above
                command,
                cwd=folder,
                env={},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=WALL_S,
                preexec_fn=_limit,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return False
    return done.returncode == 0


def _without_network() -> list[str]:
    unshare = ["unshare", "--net", "--map-root-user"]
    try:
        works = subprocess.run([*unshare, "true"], capture_output=True, timeout=WALL_S, check=False).returncode == 0  # noqa: S603
    except FileNotFoundError:
        works = False
    return unshare if works else []


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
